//! Kubeconfigs that cannot be used: one line of the log names the file, the field and the cause, and the agent follows as
//! soon as the file is mended.

use std::fs;
use std::path::Path;

use crate::support::agent::Agent;
use crate::support::certs::{Key, base64_of};
use crate::support::kubeconfig::KubeConfig;
use crate::world::{LONG_GRACE, World, count, node_port};

/// Starts with a file that `spoil` makes, and is told off in one line that has these words; then the file is mended.
fn refused(spoil: impl FnOnce(&World, &Path), words: &[&str]) {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    let path = world.kubeconfig();
    spoil(&world, &path);
    let agent = world.agent(&["-debug"]);
    agent.wait_log("failures=3");
    assert_refusal(&agent, &path, words);
    assert!(world.server.requests().is_empty());
    let _ = fs::remove_dir(&path);
    world.config().write(&path);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
}

fn assert_refusal(agent: &Agent, path: &Path, words: &[&str]) {
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    let line = log.lines().find(|line| line.contains(" WARN ")).unwrap();
    assert!(line.contains("source lost") && line.contains(&format!("kubeconfig {}: ", path.display())), "{line}");
    for word in words {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(line.len() < 1000, "{line}");
}

/// The same with k3s's own file, in which one thing is replaced by another.
fn refused_with(from: &str, to: &str, words: &[&str]) {
    let spoil = |world: &World, path: &Path| {
        let text = world.config().text();
        assert!(text.contains(from), "no {from}: {text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    refused(spoil, words);
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn names_that_lead_nowhere() {
    refused_with(
        "current-context: default",
        "current-context: other",
        &["current-context", "other", "contexts has default"],
    );
    refused_with("current-context: default\n", "", &["current-context", "not given"]);
    refused_with("    user: default", "    user: nobody", &["contexts[name=default].context.user", "nobody"]);
    refused_with("    cluster: default", "    cluster: none", &["contexts[name=default].context.cluster", "none"]);
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn fields_that_cannot_be_used() {
    refused_with(
        "certificate-authority-data: ",
        "certificate-authority-data: (((",
        &["certificate-authority-data", "base64"],
    );
    refused_with("client-key-data: ", "client-key-data: --", &["users[name=default].user.client-key-data", "base64"]);
    refused_with("certificate-authority-data: ", "other: ", &["certificate-authority-data", "not given"]);
    refused_with("client-key-data: ", "other: ", &["users[name=default].user.client-key", "both are needed"]);
    refused_with("server: https://", "server: http://", &["clusters[name=default].cluster.server", "https"]);
    refused_with("server: https://127.0.0.1", "server: https://user:word@127.0.0.1", &["cluster.server"]);
    refused_with(
        "    client-key-data",
        "    exec:\n      command: aws\n    client-key-data",
        &["user.exec", "not supported"],
    );
    refused_with("    server:", "    proxy-url: http://p\n    server:", &["cluster.proxy-url"]);
}

/// Base64 of something that is not what it should be.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn data_of_the_wrong_kind() {
    refused(
        |world, path| {
            let (key, ca) = (base64_of(&world.pki.client(Key::EcSec1).key), base64_of(&world.pki.ca()));
            fs::write(path, world.config().text().replace(&ca, &key)).unwrap();
        },
        &["clusters[name=default].cluster.certificate-authority-data", "no certificate"],
    );
    refused(
        |world, path| {
            let (key, ca) = (base64_of(&world.pki.client(Key::EcSec1).key), base64_of(&world.pki.ca()));
            fs::write(path, world.config().text().replace(&key, &ca)).unwrap();
        },
        &["users[name=default].user.client-key-data", "holds no key in PEM"],
    );
}

/// A key that has lost its line ends, or part of its first line, is in no line of the log: neither as text nor as numbers.
#[test]
#[ignore = "needs openssl"]
fn a_key_in_disorder_is_not_in_the_log() {
    let spoilt: [fn(String) -> String; 3] = [
        |key| key.replace('\n', " "),
        |key| key.replacen("-----\n", " ", 1),
        |key| key.replacen("KEY-----\n", "KEY-----\n!", 1),
    ];
    for spoil in spoilt {
        for field in ["client-key", "client-certificate"] {
            let world = World::new();
            let key = fs::read_to_string(world.pki.client(Key::EcSec1).key).unwrap();
            let (first, numbers) = (key.lines().nth(1).unwrap()[..12].to_owned(), &key.as_bytes()[32..40]);
            let numbers = numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            fs::write(world.dir.join("spoilt.pem"), spoil(key)).unwrap();
            let text = world.config().text();
            let at = text.find(&format!("{field}-data: ")).unwrap();
            let end = at + text[at..].find('\n').unwrap();
            fs::write(world.kubeconfig(), format!("{}{field}: spoilt.pem{}", &text[..at], &text[end..])).unwrap();
            let agent = world.agent(&["-debug"]);
            agent.wait_log("source lost");
            assert_refusal(&agent, &world.kubeconfig(), &[&format!("user.{field}"), "PEM"]);
            let log = agent.log();
            assert!(!log.contains(&first) && !log.contains(&numbers), "{log}");
        }
    }
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn files_that_it_names() {
    let with_files = |ca: &str| {
        let ca = Some(ca.into());
        move |world: &World, path: &Path| KubeConfig { files: true, ca, ..world.config() }.write(path)
    };
    // These name the field and its own file.
    for (ca, word) in
        [("missing.crt", "No such file"), (".", "not a regular file"), ("/dev/zero", "not a regular file")]
    {
        let world = World::new();
        world.server.apply(node_port("web", 30080));
        with_files(ca)(&world, &world.kubeconfig());
        let agent = world.agent(&["-debug"]);
        agent.wait_log("failures=3");
        let log = agent.log();
        assert_eq!(count(&log, " WARN "), 1, "{log}");
        let line = log.lines().find(|line| line.contains(" WARN ")).unwrap();
        let file = world.dir.path().join(ca);
        for word in ["certificate-authority", word, file.to_str().unwrap()] {
            assert!(line.contains(word), "{word}: {line}");
        }
        world.config().write(&world.kubeconfig());
        world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    }
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn what_is_no_file_of_text() {
    refused(|_, path| fs::create_dir(path).unwrap(), &["not a regular file"]);
    refused(|_, path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap(), &["not a regular file"]);
    refused(|_, path| fs::write(path, b"apiVersion: \xff").unwrap(), &["byte 12", "UTF-8"]);
    refused(|_, path| fs::write(path, b"").unwrap(), &[]);
    refused(|_, path| fs::write(path, b"a: [1, 2\nb: }").unwrap(), &["line 2"]);
    refused(|_, path| fs::write(path, b"- a\n- b\n").unwrap(), &["expected a map"]);
}

/// Of 100 MB, none of which is on the disk; it is not read.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_file_of_100_mb() {
    refused(|_, path| fs::File::create(path).unwrap().set_len(100 << 20).unwrap(), &["more than 1048576 bytes"]);
}

/// Nine aliases of nine aliases, and so on: a billion words where they are followed.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_file_that_would_grow() {
    let mut text = "a0: &a0 word\n".to_owned();
    for n in 1..10 {
        let before = format!("*a{}", n - 1);
        text.push_str(&format!("a{n}: &a{n} [{}]\n", [before.as_str(); 9].join(",")));
    }
    text.push_str("current-context: *a9\n");
    let world = World::new();
    fs::write(world.kubeconfig(), text).unwrap();
    let agent = world.agent(&["-debug"]);
    agent.wait_log("failures=3");
    assert_refusal(&agent, &world.kubeconfig(), &["line "]);
    let peak = crate::support::status_kb(agent.pid(), "VmHWM:");
    assert!(peak < 16 << 10, "{peak} KiB");
    world.config().write(&world.kubeconfig());
    world.wait_marker(&agent, &[]);

    let deep = format!("a: {}", "[".repeat(100_000));
    refused(move |_, path| fs::write(path, deep).unwrap(), &[]);
}

/// While it is followed: what is held stays, for the grace time at least.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_file_that_is_spoilt_and_mended() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
    world.wait_documents(&agent, &expect);
    fs::write(world.kubeconfig(), "no: kubeconfig\n").unwrap();
    agent.wait_log("source lost");
    assert_refusal(&agent, &world.kubeconfig(), &["current-context"]);
    world.config().write(&world.kubeconfig());
    world.server.wait_watches(1);
    world.wait_marker_after(&agent, &mut expect);
}
