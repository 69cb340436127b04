//! Who the agent says it is, and who it takes the server for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::TempDir;
use crate::support::agent::Agent;
use crate::support::certs::{Key, Pair, Pki, ServerCertificate};
use crate::support::kube_server::Client;
use crate::support::kubeconfig::KubeConfig;
use crate::world::{LONG_GRACE, World, count, node_port};

/// Copies a file to a place next to the kubeconfig, and gives its path from there.
fn beside(dir: &TempDir, from: &Path) -> PathBuf {
    let name = Path::new("credentials").join(from.file_name().unwrap());
    fs::create_dir_all(dir.join("credentials")).unwrap();
    fs::copy(from, dir.path().join(&name)).unwrap();
    name
}

#[test]
#[ignore = "needs openssl"]
fn every_form_of_key_inline_and_as_a_file() {
    for key in [Key::EcSec1, Key::EcPkcs8, Key::EcP384, Key::RsaPkcs1, Key::RsaPkcs8] {
        for files in [false, true] {
            let world = World::new();
            world.server.apply(node_port("web", 30080));
            let mut config = KubeConfig::with_key(&world.pki, &world.server.url(), key);
            if files {
                let Pair { certificate, key } = config.client.unwrap();
                let client = Pair { certificate: beside(&world.dir, &certificate), key: beside(&world.dir, &key) };
                let ca = Some(beside(&world.dir, &world.pki.ca()));
                config = KubeConfig { files, ca, client: Some(client), ..config };
            }
            config.write(&world.kubeconfig());
            let agent = world.agent(&[]);
            world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
            world.server.wait_watches(1);
            let requests = world.server.requests();
            assert!(requests.iter().all(|request| request.client == Client::Certificate), "{key:?}: {requests:?}");
            assert!(!agent.log().contains(" WARN "), "{key:?}: {}", agent.log());
        }
    }
}

/// An agent is told off in one line, and takes a kubeconfig that is right.
fn complains(world: &World, config: &KubeConfig, mended: &KubeConfig, more: &[&str], words: &[&str]) -> Agent {
    world.server.apply(node_port("web", 30080));
    config.write(&world.kubeconfig());
    let agent = world.agent(&[&["-debug"], more].concat());
    agent.wait_log("s=3 reason=");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    let line = log.lines().find(|line| line.contains(" WARN ")).unwrap();
    for word in words {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(world.documents().is_empty());
    mended.write(&world.kubeconfig());
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    assert!(!agent.log().contains("PRIVATE KEY"), "{}", agent.log());
    agent
}

#[test]
#[ignore = "needs openssl"]
fn a_key_of_another_certificate() {
    let world = World::new();
    let wrong = KubeConfig::with_key(&world.pki, &world.server.url(), Key::Mismatch);
    let words = ["users[name=default].user.client-key-data", "not the key of the certificate", "k3s.yaml"];
    complains(&world, &wrong, &world.config(), &[], &words);
    // Nobody was asked with it.
    assert!(world.server.requests().iter().all(|request| request.client == Client::Certificate));
}

#[test]
#[ignore = "needs openssl"]
fn a_key_of_a_kind_that_was_left_out() {
    let world = World::new();
    let wrong = KubeConfig::with_key(&world.pki, &world.server.url(), Key::Ed25519);
    let words = ["users[name=default].user.client-key-data", "RSA from 2048 bits, P-256 or P-384", "k3s.yaml"];
    complains(&world, &wrong, &world.config(), &[], &words);
}

#[test]
#[ignore = "needs openssl"]
fn a_client_certificate_from_elsewhere() {
    let world = World::new();
    let wrong = KubeConfig { client: Some(world.pki.foreign_client()), ..world.config() };
    complains(&world, &wrong, &world.config(), &[], &["answers 401", &world.server.url()]);
}

/// Some servers end the handshake instead, and how soon they close after that is a matter of luck.
#[test]
#[ignore = "needs openssl"]
fn a_client_certificate_from_elsewhere_that_a_proxy_ends_the_handshake_for() {
    for _ in 0..5 {
        let world = World::new();
        let wrong = KubeConfig { client: Some(world.pki.foreign_client()), ..world.config() };
        world.server.alert_foreign_certificates(true);
        let words = ["ends the TLS connection", "is the client certificate in the kubeconfig its own?"];
        complains(&world, &wrong, &world.config(), &[], &words);
    }
}

#[test]
#[ignore = "needs openssl"]
fn a_server_certificate_that_has_expired() {
    let world = World::with(Pki::with(&["IP:127.0.0.1"], ServerCertificate::Expired));
    let config = world.config();
    world.server.apply(node_port("web", 30080));
    config.write(&world.kubeconfig());
    let agent = world.agent(&["-debug"]);
    agent.wait_log("failures=3");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    assert!(log.contains("certificate has expired, or this machine's clock"), "{log}");
    assert!(world.server.requests().is_empty(), "nothing is told to who cannot prove who they are");
}

#[test]
#[ignore = "needs openssl"]
fn a_server_certificate_of_another_authority() {
    let world = World::with(Pki::with(&["IP:127.0.0.1"], ServerCertificate::ForeignCa));
    world.config().write(&world.kubeconfig());
    let agent = world.agent(&["-debug"]);
    agent.wait_log("failures=3");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    assert!(log.contains("not from the kubeconfig's certificate-authority"), "{log}");
    assert!(world.server.requests().is_empty());
}

#[test]
#[ignore = "needs openssl"]
fn a_server_certificate_for_other_names_and_tls_server_name() {
    for (name, wrong_name) in [("DNS:kubernetes.default.svc", None), ("DNS:kubernetes.default.svc", Some("other.test"))]
    {
        let world = World::with(Pki::with(&[name], ServerCertificate::Good));
        let wrong = KubeConfig { tls_server_name: wrong_name.map(str::to_owned), ..world.config() };
        let mended = KubeConfig { tls_server_name: Some("kubernetes.default.svc".into()), ..world.config() };
        complains(&world, &wrong, &mended, &[], &["for other names", "tls-server-name"]);
    }
}

/// By its name, and on IPv6.
#[test]
#[ignore = "needs openssl"]
fn servers_by_name_and_by_ipv6_address() {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    let url = format!("https://localhost:{}", world.server.port());
    KubeConfig { server: url, ..world.config() }.write(&world.kubeconfig());
    let agent = world.agent(&[]);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);

    let world = World::new();
    let server = crate::support::kube_server::KubeServer::start(&world.pki, "[::1]:0");
    let world = World { server, ..world };
    world.server.apply(node_port("web", 30080));
    world.config().write(&world.kubeconfig());
    let agent = world.agent(&[]);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
}

#[test]
#[ignore = "needs openssl"]
fn insecure_skip_tls_verify_needs_a_flag_besides() {
    let world = World::with(Pki::with(&["DNS:elsewhere.test"], ServerCertificate::Expired));
    world.server.apply(node_port("web", 30080));
    let insecure = KubeConfig { ca: None, insecure_skip_tls_verify: true, ..world.config() };
    insecure.write(&world.kubeconfig());
    let agent = world.agent(&["-debug"]);
    agent.wait_log("failures=3");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    assert!(log.contains("insecure-skip-tls-verify") && log.contains("--insecure-kubernetes-tls"), "{log}");
    assert!(world.server.requests().is_empty());
    assert_eq!(agent.stop(), Some(0));

    let agent = world.agent(&["--insecure-kubernetes-tls"]);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    assert_eq!(agent.stop(), Some(0));

    // The flag alone turns nothing off.
    let world = World::with(Pki::with(&["DNS:elsewhere.test"], ServerCertificate::Good));
    world.config().write(&world.kubeconfig());
    let agent = world.agent(&["--insecure-kubernetes-tls"]);
    agent.wait_log("for other names");
    assert!(world.server.requests().is_empty());
}

/// As k3s rotates them: the certificate's file is another, and the kubeconfig is as it was.
#[test]
#[ignore = "needs openssl"]
fn a_client_certificate_that_is_replaced_on_disk() {
    let world = World::new();
    let good = world.pki.client(Key::EcPkcs8);
    let foreign = world.pki.foreign_client();
    let client = Pair { certificate: "own.crt".into(), key: "own.key".into() };
    let put = |pair: &Pair| {
        fs::copy(&pair.certificate, world.dir.join("own.crt")).unwrap();
        fs::copy(&pair.key, world.dir.join("own.key")).unwrap();
    };
    put(&good);
    let ca = Some(world.pki.ca());
    KubeConfig { files: true, ca, client: Some(client), ..world.config() }.write(&world.kubeconfig());
    let agent = world.agent(&LONG_GRACE);
    world.server.wait_watches(1);
    put(&foreign);
    // A session goes on with what it has read.
    world.server.restart();
    world.server.wait_watches(1);
    world.server.stop();
    agent.wait_log("source lost");
    world.server.resume();
    agent.wait_log("answers 401");
    put(&good);
    world.server.wait_watches(1);
    world.wait_marker(&agent, &[]);
}
