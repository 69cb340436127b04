//! Real container engines: dockerd in the guest's namespace, and Podman's Docker-compatible service. Need root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::vm::Namespace;
use super::{DEADLINE, Process, TempDir, eventually, run, within};

/// No registry is reachable: the image is made of Debian's static busybox.
const BUSYBOX: &str = "/bin/busybox";

/// A tar in that directory of what an image holds: `/busybox` and `/udp_echo`.
pub fn image_tar(dir: &TempDir) -> PathBuf {
    let (image, tar) = (dir.join("image"), dir.join("image.tar"));
    fs::create_dir(&image).unwrap();
    fs::copy(BUSYBOX, image.join("busybox")).expect("busybox-static: run scripts/deps.sh docker");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/udp_echo.c");
    run(Command::new("cc").args(["-static", "-O1", "-o"]).arg(image.join("udp_echo")).arg(source));
    run(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&tar).args(["busybox", "udp_echo"]));
    tar
}

/// An engine with the image `busybox:local`, in directories of its own.
pub struct Engine {
    kind: Kind,
    dir: TempDir,
    daemon: Option<Process>,
    namespace: String,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Docker,
    Podman,
}

impl Engine {
    pub fn docker(namespace: &Namespace) -> Engine {
        Engine::start(Kind::Docker, namespace)
    }

    pub fn podman(namespace: &Namespace) -> Engine {
        Engine::start(Kind::Podman, namespace)
    }

    fn start(kind: Kind, namespace: &Namespace) -> Engine {
        let mut engine = Engine { kind, dir: TempDir::new(), daemon: None, namespace: namespace.name().to_owned() };
        engine.launch();
        let tar = image_tar(&engine.dir);
        run(engine.cli().arg("import").arg(&tar).arg("busybox:local"));
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("engine.sock")
    }

    /// Starts the daemon and waits for it to answer.
    pub fn launch(&mut self) {
        let path = |name: &str| self.dir.join(name).into_os_string();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace));
        let host = format!("unix://{}", self.socket().display());
        match self.kind {
            Kind::Docker => command
                .args(["dockerd", "--bip", "172.30.0.1/16", "-H", &host, "--data-root"])
                .arg(path("data"))
                .arg("--exec-root")
                .arg(path("exec"))
                .arg("-p")
                .arg(path("pid")),
            Kind::Podman => command
                .args(["podman", "--network-backend", "netavark", "--root"])
                .arg(path("root"))
                .arg("--runroot")
                .arg(path("run"))
                .arg("--network-config-dir")
                .arg(path("net"))
                .arg("--tmpdir")
                .arg(path("tmp"))
                .args(["system", "service", "-t", "0", &host]),
        };
        let log = File::create(self.dir.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(Process::spawn(&mut command));
        // One that was killed looks through everything it finds, on a machine that may have much else to do.
        within(3 * DEADLINE, "an answer of the engine", || {
            let out = self.cli().arg("version").output().unwrap();
            if out.status.success() { Ok(()) } else { Err(fs::read_to_string(self.dir.join("log")).unwrap()) }
        });
    }

    /// SIGTERM, and waits for the end; containers without a restart policy end with it.
    pub fn halt(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().pid()
    }

    /// SIGKILL, if it still runs, and a new one, which finds what this one left.
    pub fn relaunch(&mut self) {
        drop(self.daemon.take());
        // dockerd's own containerd ends with it, a moment later; a new dockerd that still sees it would wait for it.
        let file = self.dir.join("exec/containerd/containerd.pid");
        if let Some(pid) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok()) {
            let ended = || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            };
            eventually("the end of dockerd's containerd", || if ended() { Ok(()) } else { Err(pid) });
            let _ = fs::remove_file(file);
        }
        self.launch();
    }

    /// The docker client, for this engine.
    pub fn cli(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket().display()));
        command
    }

    pub fn ask(&self, args: &[&str]) -> String {
        run(self.cli().args(args)).trim().to_owned()
    }

    /// Runs a web server named `name` in the background: `GET /busybox` on its port 80 answers 200.
    pub fn web(&self, name: &str, args: &[&str]) {
        let serve = ["busybox:local", "/busybox", "httpd", "-f", "-p", "80", "-h", "/"];
        self.run(name, args, &serve);
    }

    /// Runs an image with a command, in the background.
    pub fn run(&self, name: &str, args: &[&str], image_and_command: &[&str]) {
        let mut all = vec!["run", "-d", "--name", name];
        if self.kind == Kind::Podman {
            // Its defaults are over what this kind of machine allows.
            all.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        }
        all.extend(args);
        all.extend(image_and_command);
        self.ask(&all);
    }

    pub fn remove(&self, name: &str) {
        self.ask(&["rm", "-f", name]);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Each container is a process of its own: none may stay.
            if let Ok(out) = self.cli().args(["ps", "-aq"]).output() {
                for id in String::from_utf8_lossy(&out.stdout).split_whitespace() {
                    let _ = self.cli().args(["rm", "-f", id]).output();
                }
            }
            daemon.signal(Signal::SIGTERM);
            let end = Instant::now() + DEADLINE;
            while daemon.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- the engine's last lines, newest first:\n{}", tail.join("\n"));
        }
        unmount_below(self.dir.path());
    }
}

/// Engines leave mounts in their directories, and those would outlive them.
pub fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir));
    // The innermost comes last.
    for mount in ours.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").arg(mount).output();
    }
}
