//! An API server, a kubeconfig that leads to it, an agent that follows it, and a receiver of what the agent tells.

use std::path::{Path, PathBuf};

use crate::support::agent::Agent;
use crate::support::certs::Pki;
use crate::support::kube_server::{KubeServer, Port, Service};
use crate::support::kubeconfig::KubeConfig;
use crate::support::receiver::{Receiver, read};
use crate::support::{TempDir, eventually};

/// No test is about the grace time unless it says so.
pub const LONG_GRACE: [&str; 2] = ["--engine-grace", "5m"];

/// Everything but the agent.
pub struct World {
    pub pki: Pki,
    pub server: KubeServer,
    pub receiver: Receiver,
    pub dir: TempDir,
}

impl World {
    /// The server listens; there is no kubeconfig yet.
    pub fn new() -> World {
        World::with(Pki::new())
    }

    pub fn with(pki: Pki) -> World {
        let server = KubeServer::start(&pki, "127.0.0.1:0");
        World { pki, server, receiver: Receiver::new(), dir: TempDir::new() }
    }

    /// With an agent that follows, and that holds `services`.
    pub fn running(services: &[Service], more: &[&str]) -> (World, Agent) {
        let world = World::new();
        for service in services {
            world.server.apply(service.clone());
        }
        world.config().write(&world.kubeconfig());
        let agent = world.agent(more);
        world.server.wait_watches(1);
        (world, agent)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("k3s.yaml")
    }

    /// k3s's own, with the administrator's certificate.
    pub fn config(&self) -> KubeConfig {
        KubeConfig::new(&self.pki, &self.server.url())
    }

    pub fn config_with_token(&self, token: &str) -> KubeConfig {
        KubeConfig::with_token(&self.pki, &self.server.url(), token)
    }

    /// With `-adminInstall`, so that documents have the addresses that are published.
    pub fn agent(&self, more: &[&str]) -> Agent {
        self.plain_agent(&[&["-adminInstall"], more].concat())
    }

    pub fn plain_agent(&self, more: &[&str]) -> Agent {
        let (url, kubeconfig) = (self.receiver.url(), self.kubeconfig());
        Agent::run(None, &[&arguments(&url, &kubeconfig)[..], more].concat())
    }

    /// One document a line of the result: `+ 0.0.0.0:30080/tcp [::]:30080/tcp`, `-` for what is withdrawn.
    pub fn documents(&self) -> Vec<String> {
        self.receiver.all().iter().map(|document| shown(&document.text)).collect()
    }

    /// Waits until exactly these documents have come.
    #[track_caller]
    pub fn wait_documents(&self, agent: &Agent, expect: &[&str]) {
        let caller = std::panic::Location::caller();
        eventually(&format!("documents {expect:?} at {caller}"), || match self.documents() {
            seen if seen == expect => Ok(()),
            seen => Err((seen, agent.log())),
        });
    }

    /// After these documents comes that of a Service of its own, and no other: whatever the agent had to do because of
    /// what happened before, it has done.
    #[track_caller]
    pub fn wait_marker(&self, agent: &Agent, documents: &[&str]) {
        self.wait_documents(agent, documents);
        self.server.apply(node_port("marker", 32767));
        self.wait_documents(agent, &[documents, &["+ 0.0.0.0:32767/tcp"]].concat());
    }

    /// The same again and again: the marker comes and goes, and its documents are added to `expect`.
    #[track_caller]
    pub fn wait_marker_after(&self, agent: &Agent, expect: &mut Vec<&str>) {
        self.wait_marker(agent, expect);
        self.server.delete("default", "marker");
        expect.extend(["+ 0.0.0.0:32767/tcp", "- 0.0.0.0:32767/tcp"]);
        self.wait_documents(agent, expect);
    }
}

/// The arguments of an agent whose documents are the same everywhere, without root.
pub fn arguments<'a>(sink: &'a str, kubeconfig: &'a Path) -> [&'a str; 8] {
    let kubeconfig = kubeconfig.to_str().unwrap();
    ["-kubernetes", "-kubeconfig", kubeconfig, "--sink", sink, "-iptables=false", "--connect-interface", "lo"]
}

pub fn node_port(name: &str, port: u16) -> Service {
    Service::node_port("default", name, &[Port::tcp(80, port)])
}

/// Lines of a log that have this text.
pub fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

fn shown(document: &str) -> String {
    let (remove, mut names) = read(document);
    names.sort();
    format!("{} {}", if remove { '-' } else { '+' }, names.join(" "))
}

/// Each case in a thread of its own, for those that mostly wait.
pub fn side_by_side<T: Send>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    let check = &check;
    std::thread::scope(|scope| {
        let threads: Vec<_> = cases.into_iter().map(|case| scope.spawn(move || check(case))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}
