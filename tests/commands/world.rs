//! A guest with dockerd and the agent, and a host with host-switch's stand-in.

use std::process::Output;

use crate::support::agent::Agent;
use crate::support::docker::Engine;
use crate::support::host_switch::relayed::Relayed;
use crate::support::host_switch::{HostSwitch, bind};
use crate::support::vm::{SWITCH, Vm};
use crate::support::{TempDir, eventually};

pub struct World {
    pub agent: Agent,
    pub switch: HostSwitch,
    pub engine: Engine,
    pub vm: Vm,
    pub dir: TempDir,
}

impl World {
    /// The agent watches docker alone, and tells host-switch alone.
    pub fn new(args: &[&str]) -> World {
        let (vm, dir) = (Vm::on_tap(), TempDir::new());
        let engine = Engine::docker(&vm.guest);
        let serve = || {
            let forwarding = Relayed::start().unwrap();
            HostSwitch::serve(bind(format!("{SWITCH}:80").parse().unwrap()), Box::new(forwarding))
        };
        let switch = vm.host.enter(serve);
        let state = dir.join("state.json").display().to_string();
        let own = ["-sockets=false", "-iptables=false", "--sink", "http://192.168.127.1:80", "--state-file", &state];
        let agent = Agent::start(Some(&vm.guest), &engine.socket(), &[&own[..], args].concat());
        agent.wait_log("source ready source=docker");
        World { agent, switch, engine, vm, dir }
    }

    /// Runs a command of the agent's.
    pub fn ask(&self, words: &[&str]) -> Output {
        self.agent.ask(words).output().unwrap()
    }

    /// What it prints to standard output; its exit code has to be that.
    pub fn told(&self, words: &[&str], code: i32) -> String {
        let output = self.ask(words);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}\n{out}{err}{}", self.agent.log());
        out.into_owned()
    }

    /// Waits until there are so many clients, this question among them.
    pub fn wait_clients(&self, count: usize) {
        eventually(&format!("{count} clients"), || match self.told(&["status", "--json"], 0) {
            status if status.contains(&format!("\"clients\":{{\"now\":{count},")) => Ok(()),
            status => Err(status),
        });
    }
}
