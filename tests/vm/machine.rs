//! A guest under QEMU without KVM: its disk and kernel come from `prepare.sh`, its vsock from vhost-device-vsock.
//!
//! On this side vsock is unix sockets only: nothing here opens a vsock connection of the machine that runs the test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// From power-on to the shell; a busy machine needs several times the usual 5 s.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
const CONSOLE_LINES_SHOWN: usize = 100;

/// Calls `step` every 50 ms until it gives a value; panics with `what` at the deadline.
pub fn poll<T>(what: &str, deadline: Duration, mut step: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a command in the guest answered.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    /// Standard output and error.
    pub output: String,
}

/// A running guest. Dropping it ends QEMU and the backend, removes its files, and shows its console if the test failed.
pub struct Machine {
    dir: PathBuf,
    children: Vec<(&'static str, Child)>,
    shell: Option<BufReader<UnixStream>>,
}

impl Machine {
    /// Makes the directory for the sockets and starts the vsock backend. Listeners for the guest's connections go into
    /// [`Machine::host_socket`] before [`Machine::boot`].
    pub fn new() -> Self {
        // Short, as a unix socket's path has 107 bytes at most.
        let dir = std::env::temp_dir().join(format!("rd-vm-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let mut machine = Self { dir, children: Vec::new(), shell: None };
        let backend = format!(
            "guest-cid=3,socket={},uds-path={}",
            machine.path("vhost-user").display(),
            machine.path("vsock").display()
        );
        let log = File::create(machine.path("backend.log")).unwrap();
        machine.start(
            "vhost-device-vsock",
            mortal(&target("vm/tools/bin/vhost-device-vsock"))
                .args(["--vm", &backend])
                .stdout(log.try_clone().unwrap())
                .stderr(log),
        );
        machine.wait_for_file("vhost-user");
        machine
    }

    /// The unix socket at which the guest's connections to port `port` of the host arrive.
    pub fn host_socket(&self, port: u32) -> PathBuf {
        self.path(&format!("vsock_{port}"))
    }

    /// Starts QEMU and waits until the guest's shell answers.
    pub fn boot(&mut self) {
        let path = |name| self.path(name).display().to_string();
        let vsock = format!("socket,id=vsock,path={}", path("vhost-user"));
        let shell = format!("socket,id=shell,path={},server=on,wait=off", path("shell"));
        let console = format!("file:{}", path("console"));
        let disk =
            format!("file={},format=raw,if=none,id=disk,snapshot=on,cache=unsafe", target("vm/rootfs.img").display());
        let log = File::create(self.path("qemu.log")).unwrap();
        let mut qemu = mortal(Path::new("qemu-system-x86_64"));
        qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024", "-M", "pc,memory-backend=memory"])
            // vhost-user: the backend reads the guest's memory.
            .args(["-object", "memory-backend-memfd,id=memory,size=1024M,share=on"])
            .args(["-chardev", &vsock, "-device", "vhost-user-vsock-pci,chardev=vsock"])
            .args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"])
            .arg("-kernel")
            .arg(target("vm/kernel/vmlinuz"))
            .arg("-initrd")
            .arg(target("vm/initrd.gz"))
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"])
            .args(["-serial", &console, "-chardev", &shell, "-serial", "chardev:shell"])
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.start("qemu", &mut qemu);
        self.wait_for_file("shell");
        let stream = UnixStream::connect(self.path("shell")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        self.shell = Some(BufReader::new(stream));
        let end = Instant::now() + BOOT_DEADLINE;
        while self.shell_line(end, "the guest's boot") != "@ready" {}
    }

    /// Runs a shell command, one line, in the guest.
    pub fn sh(&mut self, command: &str, deadline: Duration) -> Answer {
        assert!(!command.contains('\n'), "one line");
        eprintln!("guest$ {command}");
        let shell = self.shell.as_mut().unwrap();
        shell.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        let end = Instant::now() + deadline;
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = self.shell_line(end, command);
            if let Some(status) = line.strip_prefix("@rc ") {
                // The shell writes a newline before its own line.
                let output = lines.join("\n").trim_end().to_owned();
                eprintln!("{output}\n[{status}]");
                return Answer { status: status.parse().unwrap(), output };
            }
            lines.push(line);
        }
    }

    /// The output of a command that must succeed.
    pub fn ok(&mut self, command: &str, deadline: Duration) -> String {
        let answer = self.sh(command, deadline);
        assert_eq!(answer.status, 0, "{command}: {}", answer.output);
        answer.output
    }

    /// Connects to a vsock port of the guest and reads until the guest closes. Tries again while nothing listens there.
    pub fn read_from_guest(&self, port: u32, deadline: Duration) -> Vec<u8> {
        poll(&format!("the guest's vsock port {port}"), deadline, || {
            let mut stream = UnixStream::connect(self.path("vsock")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
            let mut answer = BufReader::new(stream);
            let mut accepted = String::new();
            answer.read_line(&mut accepted).ok().filter(|_| accepted.starts_with("OK "))?;
            let mut bytes = Vec::new();
            answer.read_to_end(&mut bytes).unwrap();
            Some(bytes)
        })
    }

    fn shell_line(&mut self, end: Instant, what: &str) -> String {
        let mut line = Vec::new();
        loop {
            match self.shell.as_mut().unwrap().read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    line.pop();
                    return String::from_utf8_lossy(&line).into_owned();
                }
                Ok(_) => panic!("{what}: the guest is gone"),
                // What was read so far stays in `line`.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => panic!("{what}: {e}"),
            }
            assert!(Instant::now() < end, "{what}: no end in time, last: {:?}", String::from_utf8_lossy(&line));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn start(&mut self, name: &'static str, command: &mut Command) {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        self.children.push((name, child));
    }

    fn wait_for_file(&mut self, name: &str) {
        let path = self.path(name);
        poll(&path.display().to_string(), Duration::from_secs(20), || {
            for (program, child) in &mut self.children {
                assert!(child.try_wait().unwrap().is_none(), "{program} ended");
            }
            path.exists().then_some(())
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        while let Some((_, mut child)) = self.children.pop() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in ["backend.log", "qemu.log", "console"] {
                let text = fs::read(self.path(name)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(CONSOLE_LINES_SHOWN);
                eprintln!("--- {name}:\n{}", lines.get(from..).unwrap_or_default().join("\n"));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A program which does not outlive the test, even one that is killed and drops nothing.
fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A path under the target directory that `prepare.sh` uses.
fn target(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(path)
}
