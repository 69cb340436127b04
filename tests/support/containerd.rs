//! A real containerd in the guest's namespace, driven by `ctr`. Needs root, containerd and runc.
//!
//! Everything it would share with another containerd of the machine is its own here: root, state, socket, FIFOs, runc's
//! root and the containers' cgroups. Where those two are not, the same container id in two containerds is one to runc:
//! ending the one kills the processes of the other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::docker::{image_tar, unmount_below};
use super::vm::Namespace;
use super::{DEADLINE, Process, TempDir, eventually, run, unique, within};

/// The image that every container is made of.
pub const IMAGE: &str = "localhost/busybox:local";

/// CRI is not under test and slow to start; `opt` would make a directory in `/opt`.
const CONFIG: &str =
    "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n";

pub struct Containerd {
    dir: TempDir,
    daemon: Option<Process>,
    namespace: String,
    /// containerd namespaces that have the image.
    imported: Mutex<BTreeSet<String>>,
}

/// The value of the label `nerdctl/ports`: host address, host port, container port and protocol of each.
pub fn ports_label(ports: &[(&str, u16, u16, &str)]) -> String {
    let entry = |(ip, host, container, protocol): &(&str, u16, u16, &str)| json!({"HostPort": host, "ContainerPort": container, "Protocol": protocol, "HostIP": ip});
    Value::Array(ports.iter().map(entry).collect()).to_string()
}

impl Containerd {
    /// Starts it, with the image in the containerd namespace `default`.
    pub fn start(namespace: &Namespace) -> Containerd {
        let dir = TempDir::new();
        fs::write(dir.join("config.toml"), CONFIG).unwrap();
        oci_tar(&dir);
        let namespace = namespace.name().to_owned();
        let mut containerd = Containerd { dir, daemon: None, namespace, imported: Mutex::default() };
        containerd.launch();
        containerd.import_into("default");
        containerd
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Starts the daemon and waits for it to answer.
    pub fn launch(&mut self) {
        self.spawn();
        within(3 * DEADLINE, "an answer of containerd", || if self.answers() { Ok(()) } else { Err(self.log()) });
    }

    fn spawn(&mut self) {
        let log = File::create(self.dir.join("log")).unwrap();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace)).arg("containerd");
        for (flag, name) in
            [("--config", "config.toml"), ("--address", "containerd.sock"), ("--root", "root"), ("--state", "state")]
        {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(Process::spawn(&mut command));
    }

    fn answers(&self) -> bool {
        self.ctr("default").arg("version").output().is_ok_and(|out| out.status.success())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// SIGTERM, and waits for the end. Containers go on running.
    pub fn halt(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().pid()
    }

    /// SIGKILL, if it still runs, and a new one. Containers go on running.
    pub fn relaunch(&mut self) {
        drop(self.daemon.take());
        self.launch();
    }

    /// `ctr`, for this containerd and that containerd namespace.
    pub fn ctr(&self, ns: &str) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["-n", ns]).stdin(Stdio::null());
        command
    }

    pub fn import_into(&self, ns: &str) {
        if self.imported.lock().unwrap().insert(ns.to_owned()) {
            run(self.ctr(ns).args(["image", "import"]).arg(self.dir.join("oci.tar")));
        }
    }

    /// Runs a container in the background, in that network namespace, or in one of its own that leads nowhere.
    pub fn run(&self, ns: &str, id: &str, labels: &[(&str, &str)], netns: Option<&Path>, command: &[&str]) {
        self.import_into(ns);
        let mut ctr = self.ctr(ns);
        // Without a directory above it, which would be left.
        let cgroup = format!("{}-{ns}-{id}", self.dir.path().file_name().unwrap().to_str().unwrap());
        ctr.args(["run", "-d", "--null-io", "--cgroup", &cgroup, "--runc-root"]).arg(self.dir.join("runc"));
        for (key, value) in labels {
            ctr.arg("--label").arg(format!("{key}={value}"));
        }
        if let Some(netns) = netns {
            ctr.arg("--with-ns").arg(format!("network:{}", netns.display()));
        }
        run(ctr.args([IMAGE, id]).args(command));
    }

    /// Runs a web server: `GET /busybox` on port 80 of its network namespace answers 200.
    pub fn web(&self, ns: &str, id: &str, labels: &[(&str, &str)], netns: Option<&Path>) {
        self.run(ns, id, labels, netns, &["/busybox", "httpd", "-f", "-p", "80", "-h", "/"]);
    }

    /// Runs a command in a running container, to its end.
    pub fn exec(&self, ns: &str, id: &str, command: &[&str]) {
        let exec_id = format!("exec-{}", unique());
        let mut ctr = self.ctr(ns);
        ctr.args(["task", "exec", "--exec-id", &exec_id, "--fifo-dir"]).arg(self.dir.join("fifo"));
        run(ctr.arg(id).args(command));
    }

    /// SIGKILL, and waits until the container is stopped. Task and container stay.
    pub fn kill(&self, ns: &str, id: &str) {
        run(self.ctr(ns).args(["task", "kill", "-s", "9", id]));
        eventually("the end of a container", || match self.status(ns, id) {
            Some(status) if status == "STOPPED" => Ok(()),
            other => Err(other),
        });
    }

    /// Kills the container where it runs, and removes its task and itself.
    pub fn remove(&self, ns: &str, id: &str) {
        match self.status(ns, id).as_deref() {
            None => {}
            Some("STOPPED") => drop(run(self.ctr(ns).args(["task", "rm", id]))),
            Some(_) => {
                self.kill(ns, id);
                run(self.ctr(ns).args(["task", "rm", id]));
            }
        }
        run(self.ctr(ns).args(["container", "rm", id]));
    }

    /// What `ctr task ls` says of a container; `None`: it has no task.
    fn status(&self, ns: &str, id: &str) -> Option<String> {
        let tasks = run(self.ctr(ns).args(["task", "ls"]));
        let words = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.filter(|words| words.first() == Some(&id)).find_map(|words| words.get(2).map(|s| (*s).to_owned()))
    }

    /// Every container with its containerd namespace; nothing when containerd does not answer.
    fn containers(&self) -> Vec<(String, String)> {
        let words = |command: &mut Command| -> Vec<String> {
            let out = command.output().map(|out| out.stdout).unwrap_or_default();
            String::from_utf8_lossy(&out).split_whitespace().map(str::to_owned).collect()
        };
        let namespaces = words(self.ctr("default").args(["namespaces", "ls", "-q"]));
        let of = |ns: String| {
            let ids = words(self.ctr(&ns).args(["container", "ls", "-q"]));
            ids.into_iter().map(move |id| (ns.clone(), id))
        };
        namespaces.into_iter().flat_map(of).collect()
    }

    /// Processes that name our directory in their command line: the daemon, and a shim for each container.
    fn processes(&self) -> Vec<i32> {
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            words.iter().any(|word| Path::new(&**word).starts_with(self.dir.path()))
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let wait = |mut done: Box<dyn FnMut() -> bool + '_>| {
            let end = Instant::now() + DEADLINE;
            while !done() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- containerd's last lines, newest first:\n{}", tail.join("\n"));
        }
        // Containers outlive the daemon: it is needed to end them.
        if !self.daemon.as_mut().is_some_and(Process::is_running) {
            self.spawn();
            wait(Box::new(|| self.answers()));
        }
        for (ns, id) in self.containers() {
            let _ = self.ctr(&ns).args(["task", "rm", "-f", &id]).output();
            let _ = self.ctr(&ns).args(["container", "rm", &id]).output();
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            wait(Box::new(|| !daemon.is_running()));
        }
        // Shims end a moment after their tasks.
        wait(Box::new(|| self.processes().is_empty()));
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        unmount_below(self.dir.path());
    }
}

/// Writes `oci.tar`, an image of one layer in the OCI layout, which `ctr image import` takes.
fn oci_tar(dir: &TempDir) {
    let layout = dir.join("oci");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let blob = |kind: &str, path: &Path| {
        let digest = run(Command::new("sha256sum").arg(path)).split(' ').next().unwrap().to_owned();
        let size = fs::metadata(path).unwrap().len();
        fs::rename(path, layout.join("blobs/sha256").join(&digest)).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    };
    let json_blob = |kind: &str, content: &Value| {
        let path = dir.join("blob");
        fs::write(&path, content.to_string()).unwrap();
        blob(kind, &path)
    };
    let layer = blob("layer.v1.tar", &image_tar(dir));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let config = json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs});
    let config = json_blob("config.v1+json", &config);
    let mut manifest = json_blob("manifest.v1+json", &json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut tar = Command::new("tar");
    run(tar.arg("-C").arg(&layout).arg("-cf").arg(dir.join("oci.tar")).args(["oci-layout", "index.json", "blobs"]));
}
