//! Command lines and what they mean, or why they are refused.

use super::*;

fn check(line: &str) -> Result<Wish, ConfigError> {
    read(line.split_whitespace().map(OsString::from), |_| None)
}

fn config(line: &str) -> Config {
    match check(line) {
        Ok(Wish::Run(config)) => config,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn takes_flags_as_go_does() {
    let tcp = |text: &str| vec![(SinkConfig::Vtunnel(Address::Tcp(text.into())), Source::ALL)];
    for line in ["-docker -privilegedService", "--docker --privilegedService=true", "-docker=1 -privilegedService=T"] {
        let config = config(line);
        assert_eq!(config.docker.as_deref(), Some(std::path::Path::new("/var/run/docker.sock")), "{line}");
        assert_eq!(config.sinks, tcp("127.0.0.1:3040"), "{line}");
    }
    assert_eq!(config("-docker -privilegedService -vtunnelAddr 10.0.0.1:4").sinks, tcp("10.0.0.1:4"));
    let rd = "-debug=false -docker=true -containerd=false -kubernetes=false -iptables=false -privilegedService=true \
              -adminInstall=true -k8sServiceListenerAddr 127.0.0.1 -kubeconfig /x -containerdSock /y";
    assert!(config(rd).policy.admin);
}

#[test]
fn sinks_replace_what_the_mode_chooses() {
    let sinks = config(
        "-docker -privilegedService --sink stdout: --sink unix:///run/x --sink vsock://2 \
                        --sink listener:",
    )
    .sinks;
    let shown: Vec<String> = sinks.iter().map(|(sink, _)| sink.to_string()).collect();
    assert_eq!(shown, ["stdout:", "unix:///run/x", "vsock://2:17381", "listener:"]);
    for bad in ["stdout", "http://x:1", "unix://rel", "tcp://x", "tcp://x:0", "tcp://:1", "vsock://x", "vsock://2:x"] {
        let error = check(&format!("-docker --sink {bad}")).unwrap_err().to_string();
        assert!(error.contains("sink") && error.contains(bad), "{error}");
    }
    assert!(check("-docker --sink stdout: --sink stdout:").unwrap_err().to_string().contains("once"));
}

#[test]
fn s28_refuses_what_cannot_work() {
    for (line, expect) in [
        ("-iptables=false", "at least one source"),
        ("-docker=false -iptables=false", "at least one source"),
        ("-docker", "nobody to tell"),
        ("-containerd", "nobody to tell"),
        ("-containerd -sink stdout: -containerdSock run/x", "containerdSock"),
        ("-containerd -sink stdout: --ctr ctr", "an absolute path"),
        // Also where they are not used, as a typing error would show only later.
        ("-iptables -containerdSock run/x", "containerdSock"),
        ("-iptables --ctr ctr", "an absolute path"),
        ("-iptables --nat-interval 1ms", "10ms"),
        ("-docker -sink stdout: --nat-interval 1ms", "10ms"),
        ("-docker -sink stdout: -vtunnelAddr nowhere", "HOST:PORT"),
        ("-docker -containerd -iptables", "cannot all be on"),
        ("-docker -sink stdout: -k8sServiceListenerAddr 10.0.0.1", "0.0.0.0 or 127.0.0.1"),
        ("-docker -sink stdout: -k8sAPIPort 0", "1 to 65535"),
        ("-docker -sink stdout: -kubeconfig=", "a path"),
        ("-docker -sink stdout: -engine-grace 10", "duration"),
        ("-docker -sink stdout: -connect-interface a/b", "interface"),
        ("-docker -sink stdout: -relay-peer 10.0.0.0/99", "ADDRESS[/PREFIX]"),
        ("-docker -sink stdout: -log-format xml", "text or json"),
        ("-docke", "did you mean --docker"),
    ] {
        let error = check(line).unwrap_err().to_string();
        assert!(error.contains(expect), "{line}: {error}");
    }
}

#[cfg(feature = "kubernetes")]
#[test]
fn kubernetes_has_its_settings() {
    let kubernetes = |line: &str| config(line).kubernetes;
    assert_eq!(kubernetes("-docker -sink stdout:"), None);
    let given = kubernetes("-kubernetes").unwrap();
    assert_eq!(given.kubeconfig, PathBuf::from("/etc/rancher/k3s/k3s.yaml"));
    assert_eq!((given.listener_ip, given.insecure_tls), (Ipv4Addr::UNSPECIFIED, false));
    assert_eq!(given.api_server.to_string(), "127.0.0.1:6443/tcp");
    let line = "-kubernetes -kubeconfig k -k8sServiceListenerAddr 127.0.0.1 -k8sAPIPort 7 --insecure-kubernetes-tls";
    let given = kubernetes(line).unwrap();
    assert_eq!(given.kubeconfig, PathBuf::from("k"));
    assert_eq!((given.listener_ip, given.insecure_tls), (Ipv4Addr::LOCALHOST, true));
    assert_eq!(given.api_server.to_string(), "127.0.0.1:7/tcp");
}

#[cfg(not(feature = "kubernetes"))]
#[test]
fn kubernetes_is_refused_where_it_was_left_out() {
    let error = check("-docker -kubernetes -sink stdout:").unwrap_err().to_string();
    assert!(error.contains("built without it"), "{error}");
}

#[test]
fn docker_host_names_a_socket() {
    let with = |value: &str| {
        let value = OsString::from(value);
        read(["-docker", "-sink", "stdout:"].map(OsString::from), move |_| Some(value.clone()))
    };
    match with("unix:///run/podman.sock").unwrap() {
        Wish::Run(config) => assert_eq!(config.docker, Some("/run/podman.sock".into())),
        other => panic!("{other:?}"),
    }
    for bad in ["tcp://1.2.3.4:2375", "unix://relative", "/run/docker.sock"] {
        assert!(with(bad).unwrap_err().to_string().contains("DOCKER_HOST"), "{bad}");
    }
}

#[test]
fn durations() {
    let ms = |text| duration(text).map(|d| d.as_millis());
    assert_eq!([ms("0s"), ms("500ms"), ms("2m")], [Some(0), Some(500), Some(120_000)]);
    assert_eq!([ms(""), ms("s"), ms("-1s"), ms("1h"), ms("9999999999s"), ms("1.5s")], [None; 6]);
}
