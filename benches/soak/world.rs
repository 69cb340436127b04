//! A guest with a real dockerd, a real containerd and the agent with everything on, and a host with the real host end and
//! the stand-in for host-switch. Each of them is a process that can be killed and stopped.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::engine;
use crate::support::agent::{self, Agent};
use crate::support::cni::{Cni, Variant};
use crate::support::containerd::Containerd;
use crate::support::docker::Engine;
use crate::support::host_switch::{HostSwitch, bind, forwarder};
use crate::support::vm::{GUEST, HOST, Vm};
use crate::support::{Process, TempDir, run, within};

/// How this program is started as the stand-in for host-switch.
pub const SWITCH_WORD: &str = "__host-switch";

/// The file system of the state file: a few times what sixty forwards need.
const STATE_BYTES: usize = 128 * 1024;

/// A start on a machine with much else to do.
pub const START: Duration = Duration::from_secs(90);

/// An address of the guest that is published: address, port, protocol.
pub type Address = (String, u16, &'static str);

// Dropped from top to bottom.
pub struct World {
    pub agent: Mutex<Agent>,
    pub hostagent: Mutex<Option<Agent>>,
    pub switch: Mutex<Option<Process>>,
    pub cni: Cni,
    pub containerd: RwLock<Containerd>,
    pub engine: RwLock<Engine>,
    pub docker: PathBuf,
    pub vm: Vm,
    state: StateDir,
    pub dir: TempDir,
    /// What plain processes listen on.
    pub plain: Mutex<BTreeMap<u32, Address>>,
    /// What containers of containerd publish, as their labels have it.
    pub labels: Mutex<BTreeMap<String, Vec<Address>>>,
    /// What CNI's rules publish, whether the container behind them runs or its start was cut off.
    pub attached: Mutex<BTreeMap<String, Address>>,
    /// What agents before this one have written to their logs.
    pub earlier_log: Mutex<u64>,
}

/// Whoever panicked has said so, and what is left has to be ended all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new() -> World {
        let (vm, dir) = (Vm::new(), TempDir::new());
        let state = StateDir::new();
        let engine = Engine::docker(&vm.guest);
        let containerd = Containerd::start(&vm.guest);
        let cni = Cni::new(&vm.guest, Variant::Nft);
        let switch = start_switch(&vm);
        let hostagent = start_hostagent(&vm, &dir);
        let docker = engine.socket();
        let agent = start_agent(&vm, &dir, &state, &docker, &containerd.socket());
        World {
            agent: Mutex::new(agent),
            hostagent: Mutex::new(Some(hostagent)),
            switch: Mutex::new(Some(switch)),
            cni,
            containerd: RwLock::new(containerd),
            engine: RwLock::new(engine),
            docker,
            vm,
            state,
            dir,
            plain: Mutex::default(),
            labels: Mutex::default(),
            attached: Mutex::default(),
            earlier_log: Mutex::default(),
        }
    }

    pub fn pid(&self) -> u32 {
        lock(&self.agent).pid()
    }

    /// SIGKILL, and another agent at once.
    pub fn replace_agent(&self) {
        let mut agent = lock(&self.agent);
        agent.process.signal(Signal::SIGKILL);
        agent.process.wait();
        *lock(&self.earlier_log) += fs::metadata(agent.log_path()).unwrap().len();
        let containerd = self.containerd.read().unwrap_or_else(PoisonError::into_inner).socket();
        *agent = start_agent(&self.vm, &self.dir, &self.state, &self.docker, &containerd);
    }

    /// Bytes that agents have written to their logs so far.
    pub fn log_bytes(&self) -> u64 {
        *lock(&self.earlier_log) + fs::metadata(lock(&self.agent).log_path()).unwrap().len()
    }

    pub fn launch_switch(&self) {
        *lock(&self.switch) = Some(start_switch(&self.vm));
    }

    pub fn launch_hostagent(&self) {
        *lock(&self.hostagent) = Some(start_hostagent(&self.vm, &self.dir));
    }

    /// Asks the agent; its documents.
    pub fn ask(&self, words: &[&str]) -> Result<Vec<Value>, String> {
        let mut command = lock(&self.agent).ask(words);
        let out = command.output().map_err(|error| error.to_string())?;
        // Where all is not well, it says so with its exit code too.
        if out.stdout.is_empty() && !out.stderr.is_empty() {
            return Err(format!("{words:?}: {}", String::from_utf8_lossy(&out.stderr)));
        }
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().map(|line| serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))).collect()
    }

    /// What `status` says of a source, or of a sink of a kind.
    pub fn state_of(&self, list: &str, name: &str) -> Result<String, String> {
        let status = self.ask(&["status", "--json"])?;
        let all = status.first().and_then(|status| status[list].as_array()).ok_or("no status")?;
        let key = if list == "sources" { "source" } else { "kind" };
        let of = all.iter().find(|one| one[key] == name).ok_or_else(|| format!("no {name}"))?;
        Ok(of["state"].as_str().unwrap_or_default().to_owned())
    }

    /// A file that takes all the room there is beside the state file.
    pub fn fill_disk(&self) {
        let _ = fs::write(self.state.0.join("fill"), vec![0; 2 * STATE_BYTES]);
    }

    pub fn empty_disk(&self) {
        let _ = fs::remove_file(self.state.0.join("fill"));
    }

    /// What the agent says in its state file is its own at host-switch.
    pub fn state_file(&self) -> Result<Value, String> {
        let text = fs::read_to_string(self.state.file()).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Takes the guest's link away and gives it back, as a DHCP client would.
    pub fn link(&self, up: bool) {
        let guest = self.vm.guest.name();
        let ip = |args: &[&str]| drop(Command::new("ip").args(["-n", guest]).args(args).output());
        ip(&["link", "set", "eth0", if up { "up" } else { "down" }]);
        if up {
            ip(&["route", "replace", "default", "via", HOST]);
            ip(&["addr", "replace", "fd00:143::2/64", "dev", "eth0", "nodad"]);
            ip(&["route", "replace", "default", "via", "fd00:143::1"]);
        }
    }

    /// Ends what dockerds that were killed while they started a container have left: proxies that listen, and containers
    /// that no dockerd knows of. Only for when nobody has a container of dockerd's. How many processes that were.
    pub fn end_lost(&self) -> usize {
        let list = || engine::call(&self.docker, "GET", "/containers/json?all=1", None).unwrap_or_default();
        // Of one that dockerd made and was killed before it could say so nobody has the id.
        for container in list().as_array().into_iter().flatten() {
            let _ = engine::remove(&self.docker, container["Id"].as_str().unwrap_or_default());
        }
        if list().as_array().is_none_or(|all| !all.is_empty()) {
            return 0;
        }
        let inode = |path: String| fs::metadata(path).map(|of| of.ino()).ok();
        let guest = inode(format!("/var/run/netns/{}", self.vm.guest.name()));
        let shim = format!("-address {}/exec/containerd/", self.docker.parent().unwrap().display());
        let processes =
            || fs::read_dir("/proc").unwrap().flatten().filter_map(|one| one.file_name().to_str()?.parse().ok());
        let line = |pid: i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        let shims: Vec<i32> = processes().filter(|pid| line(*pid).contains(&shim)).collect();
        let lost = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            let proxy = stat.contains("(docker-proxy)") && inode(format!("/proc/{pid}/ns/net")) == guest;
            proxy || parent.is_some_and(|parent| shims.contains(&parent))
        };
        let mut lost: Vec<i32> = processes().filter(lost).collect();
        lost.extend(shims);
        for pid in &lost {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        lost.len()
    }

    /// The process of the agent's that reads containerd's events.
    pub fn events_child(&self) -> Option<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?.flatten();
        let children: String = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
        let events = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("events")
        };
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(events)
    }
}

/// A process that does not run. It goes on when this is dropped, on failure too.
pub struct Stopped(Pid);

impl Stopped {
    pub fn new(pid: u32) -> Stopped {
        let pid = Pid::from_raw(pid as i32);
        let _ = kill(pid, Signal::SIGSTOP);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A small file system of its own.
struct StateDir(TempDir);

impl StateDir {
    fn new() -> StateDir {
        let dir = TempDir::new();
        let options = format!("size={STATE_BYTES},mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()));
        StateDir(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.json")
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

fn start_agent(vm: &Vm, dir: &TempDir, state: &StateDir, docker: &Path, containerd: &Path) -> Agent {
    let (sink, state) = (format!("unix://{}", dir.join("host").display()), state.file().display().to_string());
    let (containerd, kubeconfig) = (containerd.display().to_string(), dir.join("none").display().to_string());
    let (switch, host) = (format!("http://{HOST}"), format!("unix://{}", docker.display()));
    let args = [
        ["-containerdSock", &containerd],
        ["-kubeconfig", &kubeconfig],
        ["--sink", &switch],
        ["--sink", &sink],
        ["-tap-interface-ip", GUEST],
        ["--state-file", &state],
    ];
    // -kubernetes is what turns NAT rules on beside both engines, as in Rancher Desktop; its kubeconfig never appears.
    let on = ["-docker", "-containerd", "-kubernetes", "-sockets"];
    let args: Vec<&str> = on.into_iter().chain(args.concat()).collect();
    Agent::run_program(&agent::program(), Some(&vm.guest), &args, &[("DOCKER_HOST", &host)])
}

fn start_hostagent(vm: &Vm, dir: &TempDir) -> Agent {
    Agent::host(Some(&vm.host), &["--listen", &format!("unix://{}", dir.join("host").display())])
}

fn start_switch(vm: &Vm) -> Process {
    let mut command = vm.host.command(std::env::current_exe().unwrap());
    command.args([SWITCH_WORD, &format!("{HOST}:80")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    let mut line = String::new();
    let _ = BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line);
    assert!(line.contains("ready"), "the stand-in for host-switch did not start");
    process
}

/// The stand-in: it keeps forwards and opens nothing, since hostagent has the ports of the same host.
pub fn serve_switch(address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let server = HostSwitch::serve(bind(address), Box::new(forwarder::Nothing));
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_secs(1));
        server.forget_requests();
    }
}

/// Waits until a source or sink is as it should be.
pub fn wait_state(world: &World, list: &str, name: &str, state: &str, limit: Duration) {
    within(limit, &format!("{name} {state}"), || match world.state_of(list, name) {
        Ok(now) if now == state => Ok(()),
        other => {
            std::thread::sleep(Duration::from_millis(100));
            Err(other)
        }
    });
}
