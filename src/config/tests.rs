//! Command lines and what they mean, or why they are refused.

use super::*;
use crate::event::Source;
use crate::sink::vtunnel::Address;

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
fn debug_is_a_log_level() {
    for (line, level) in [
        ("-docker", LevelFilter::Info),
        ("-docker -debug", LevelFilter::Debug),
        ("-docker -debug=false --log-level warn", LevelFilter::Warn),
        ("-docker --log-level error -debug", LevelFilter::Debug),
        ("-docker --log-level debug", LevelFilter::Debug),
    ] {
        assert_eq!(config(line).log_level, level, "{line}");
    }
    for line in ["-docker --log-level trace", "-docker --log-level off", "-docker --log-level WARN"] {
        assert!(check(line).is_err(), "{line}");
    }
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
    for bad in [
        "stdout",
        "http://:1",
        "http://x/y",
        "http+unix://rel",
        "https://x",
        "wsl-proxy://rel",
        "unix://rel",
        "tcp://x",
        "tcp://x:0",
        "tcp://:1",
        "vsock://x",
        "vsock://2:x",
    ] {
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
        ("-docker -tap-interface-ip ::1", "IPv4 address"),
        ("-docker -tap-interface-ip 0.0.0.0", "IPv4 address"),
        ("-docker -socket-interval 1ms", "10ms"),
        ("-docker -api-token-file t", "an absolute path"),
        ("-docker -state-file=", "an absolute path"),
        ("-docker -deny tcp/0", "PROTO/PORT[-PORT][@SOURCE]"),
        ("-docker -allow tcp/1@nobody", "PROTO/PORT[-PORT][@SOURCE]"),
        ("-docker -sink http://a -sink http+unix:///b", "only one host-switch"),
        ("-sockets -iptables=false", "needs no listener"),
        ("-docke", "did you mean --docker"),
    ] {
        let error = check(line).unwrap_err().to_string();
        assert!(error.contains(expect), "{line}: {error}");
    }
}

#[test]
fn an_engine_alone_is_todays_rancher_desktop() {
    let shown = |line: &str| {
        let config = config(line);
        let sinks: Vec<String> = config.sinks.iter().map(|(sink, _)| sink.to_string()).collect();
        (sinks.join(" "), config.socket_interval.is_some())
    };
    let both = "http://192.168.127.1:80 wsl-proxy:///run/wsl-proxy.sock".to_owned();
    assert_eq!(shown("-docker"), (both.clone(), true));
    assert_eq!(shown("-containerd -sockets=false"), (both, false));
    assert_eq!(shown("-docker -sink http://gateway.internal/"), ("http://gateway.internal:80".into(), true));
    assert_eq!(shown("-docker -sink http://10.0.2.2:7777"), ("http://10.0.2.2:7777".into(), true));
    assert_eq!(shown("-docker -sink http+unix:///run/x"), ("http+unix:///run/x".into(), true));
    assert_eq!(shown("-docker -sink wsl-proxy:"), ("wsl-proxy:///run/wsl-proxy.sock".into(), false));
    assert_eq!(shown("-sockets -iptables=false -sink stdout:"), ("stdout:".into(), true));
    let SinkConfig::HostSwitch(given) =
        config("-docker -tap-interface-ip 10.0.0.2 -api-token-file /t").sinks.remove(0).0
    else {
        panic!("no host-switch");
    };
    assert_eq!((given.tap_ip, given.token_file), (Ipv4Addr::new(10, 0, 0, 2), Some("/t".into())));
    assert_eq!(given.state_file, PathBuf::from("/run/rancher-desktop-guestagent/state.json"));
}

#[test]
fn rules_keep_their_order() {
    let rules = |line: &str| {
        let rules = config(line).policy.rules;
        let shown: Vec<String> = rules.iter().filter(|r| !r.built_in).map(ToString::to_string).collect();
        shown.join(" ")
    };
    let line = "-docker --allow tcp/80 --deny tcp/1-1023 -allow=udp/*@docker --sink stdout: --deny *";
    assert_eq!(rules(line), "--allow tcp/80 --deny tcp/1-1023 --allow udp/*@docker --deny *");
    let api_server = |line: &str| config(line).policy.rules.iter().any(|r| r.to_string() == "--deny tcp/7@sockets");
    if cfg!(feature = "kubernetes") {
        assert!(api_server("-docker -kubernetes -k8sAPIPort 7"), "host-switch forwards it by itself");
        assert!(!api_server("-docker -kubernetes -k8sAPIPort 7 -sink http://x"));
    }
    assert!(!api_server("-docker -k8sAPIPort 7"));
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
    let long = with(&"\u{1b}x".repeat(50_000)).unwrap_err().to_string();
    assert!(long.len() < 600 && !long.chars().any(char::is_control), "{long}");
}

#[test]
fn durations() {
    let ms = |text| duration(text).map(|d| d.as_millis());
    assert_eq!([ms("0s"), ms("500ms"), ms("2m")], [Some(0), Some(500), Some(120_000)]);
    assert_eq!([ms(""), ms("s"), ms("-1s"), ms("1h"), ms("9999999999s"), ms("1.5s")], [None; 6]);
}
