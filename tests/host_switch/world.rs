//! An engine, a stand-in for host-switch, and the agent between them.

use std::path::PathBuf;

use crate::support::agent::Agent;
use crate::support::engine_stub::EngineStub;
use crate::support::host_switch::HostSwitch;
use crate::support::{TempDir, unique};

pub struct World {
    pub server: HostSwitch,
    pub engine: EngineStub,
    pub dir: TempDir,
    /// The tap address.
    pub tap: String,
}

impl World {
    pub fn new() -> World {
        World::with(HostSwitch::start())
    }

    pub fn with(server: HostSwitch) -> World {
        let tap = format!("127.9.{}.{}", std::process::id() % 250 + 1, unique() % 250 + 1);
        World { server, engine: EngineStub::new(), dir: TempDir::new(), tap }
    }

    pub fn state_file(&self) -> PathBuf {
        self.dir.join("run/state.json")
    }

    /// Starts the agent, and waits until it has seen the containers.
    pub fn agent(&self, args: &[&str]) -> Agent {
        self.agent_with(&self.server.url(), args, &[])
    }

    pub fn agent_with(&self, url: &str, args: &[&str], env: &[(&str, &str)]) -> Agent {
        let state_file = self.state_file();
        let own = ["-docker", "-sockets=false", "--sink", url, "-tap-interface-ip", &self.tap];
        let rest = ["--relay-peer", "127.0.0.0/8", "--state-file", state_file.to_str().unwrap()];
        let host = format!("unix://{}", self.engine.socket().display());
        let env = [&[("DOCKER_HOST", host.as_str())][..], env].concat();
        let program = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");
        let agent = Agent::run_program(program.as_ref(), None, &[&own[..], &rest, args].concat(), &env);
        agent.wait_log("source ready");
        agent
    }

    /// A forward as the stand-in lists it.
    pub fn tcp(&self, local: &str) -> String {
        self.forward("tcp", local)
    }

    pub fn forward(&self, protocol: &str, local: &str) -> String {
        format!("{protocol} {local} {}:{}", self.tap, local.rsplit(':').next().unwrap())
    }

    /// A forward of ours, made by nobody of now.
    pub fn insert_ours(&self, local: &str) {
        let remote = format!("{}:{}", self.tap, local.rsplit(':').next().unwrap());
        self.server.insert("tcp", local, &remote);
    }

    /// What is in the state file, as forwards.
    pub fn write_state(&self, locals: &[&str]) {
        let forwards: Vec<String> =
            locals.iter().map(|local| format!(r#"{{"protocol":"tcp","local":"{local}"}}"#)).collect();
        self.write_state_file(&format!(
            r#"{{"version":1,"api":"{}","remote":"{}","forwards":[{}]}}"#,
            self.server.url(),
            self.tap,
            forwards.join(",")
        ));
    }

    pub fn write_state_file(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.state_file();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Waits until exactly these TCP forwards of ours are held, and what else is named in full.
    pub fn wait(&self, ours: &[&str], others: &[&str]) {
        let ours: Vec<String> = ours.iter().map(|local| self.tcp(local)).collect();
        let all: Vec<&str> = ours.iter().map(String::as_str).chain(others.iter().copied()).collect();
        self.server.wait_forwards(&all);
    }

    /// Requests to a path that ends so.
    pub fn count(&self, path: &str) -> usize {
        self.server.requests().iter().filter(|request| request.path.ends_with(path)).count()
    }
}

/// Lines of a log with that text.
pub fn lines(agent: &Agent, text: &str) -> usize {
    agent.log().lines().filter(|line| line.contains(text)).count()
}
