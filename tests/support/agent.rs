//! The two binaries of the crate as child processes, with their logs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::vm::Namespace;
use super::{Process, TempDir, eventually};

/// A running agent or host end.
pub struct Agent {
    pub process: Process,
    dir: TempDir,
    /// Its log has words of its own.
    is_other: bool,
}

/// An agent of somebody else's, or an older one of ours, that takes the same flags.
pub struct Other {
    path: PathBuf,
    /// It has flags that others do not have.
    has_control: bool,
}

/// The one that benchmarks compare with.
static OTHER: OnceLock<Other> = OnceLock::new();

/// For so long another agent is left alone after its start: nothing says when it is ready.
const OTHER_START: Duration = Duration::from_secs(3);

/// From now on that program is started without what only this agent understands. Call it once.
pub fn compare_with(path: &Path) -> Result<(), String> {
    let help = Command::new(path).arg("--help").stdin(Stdio::null()).output();
    let help = help.map_err(|error| format!("{}: {error}", path.display()))?;
    let says = |text: &[u8]| String::from_utf8_lossy(text).contains("control-socket");
    let other = Other { path: path.to_owned(), has_control: says(&help.stdout) || says(&help.stderr) };
    OTHER.set(other).map_err(|_| "there is one to compare with already".to_owned())
}

fn command(namespace: Option<&Namespace>, program: &Path) -> Command {
    match namespace {
        Some(namespace) => namespace.command(program),
        None => Command::new(program),
    }
}

/// The agent that is tested: cargo's, or another build of it, such as the static one, by `GUESTAGENT_PROGRAM`.
pub fn program() -> PathBuf {
    match std::env::var_os("GUESTAGENT_PROGRAM") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_BIN_EXE_rancher-desktop-guestagent")),
    }
}

impl Agent {
    /// Starts `rancher-desktop-guestagent` with `-docker` on that socket, and waits for its first line.
    pub fn start(namespace: Option<&Namespace>, docker: &Path, args: &[&str]) -> Agent {
        Agent::start_program(program().as_ref(), namespace, docker, args)
    }

    /// The same with another build of it.
    pub fn start_program(program: &Path, namespace: Option<&Namespace>, docker: &Path, args: &[&str]) -> Agent {
        let host = format!("unix://{}", docker.display());
        Agent::run_program(program, namespace, &[&["-docker"], args].concat(), &[("DOCKER_HOST", &host)])
    }

    /// Starts `rancher-desktop-guestagent` with these arguments, and waits for its first line.
    pub fn run(namespace: Option<&Namespace>, args: &[&str]) -> Agent {
        Agent::run_program(program().as_ref(), namespace, args, &[])
    }

    /// The same with another build of it, and with variables in its environment.
    pub fn run_program(program: &Path, namespace: Option<&Namespace>, args: &[&str], env: &[(&str, &str)]) -> Agent {
        let mut command = command(namespace, program);
        let dir = TempDir::new();
        let other = OTHER.get().filter(|other| other.path == program);
        if !args.contains(&"--control-socket") && other.is_none_or(|other| other.has_control) {
            command.arg("--control-socket").arg(dir.join("control.sock"));
        }
        command.args(args).envs(env.iter().copied());
        let agent = Agent { is_other: other.is_some(), ..Agent::spawn(command, args, dir) };
        agent.wait_log("started");
        agent
    }

    /// Starts `rancher-desktop-hostagent` and waits until it is ready.
    pub fn host(namespace: Option<&Namespace>, args: &[&str]) -> Agent {
        Agent::host_program(env!("CARGO_BIN_EXE_rancher-desktop-hostagent").as_ref(), namespace, args)
    }

    /// The same with another build of it.
    pub fn host_program(program: &Path, namespace: Option<&Namespace>, args: &[&str]) -> Agent {
        let mut command = command(namespace, program);
        command.args(args);
        let agent = Agent::spawn(command, args, TempDir::new());
        agent.wait_log("ready");
        agent
    }

    fn spawn(mut command: Command, args: &[&str], dir: TempDir) -> Agent {
        assert!(!args.iter().any(|a| a.contains("vsock")), "no vsock outside a guest that a test booted");
        command
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("out")).unwrap())
            .stderr(File::create(dir.join("log")).unwrap());
        Agent { process: Process::spawn(&mut command), dir, is_other: false }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its control socket, unless its arguments name another.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The same program as a client of this agent, with these arguments behind the command.
    pub fn ask(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(words.get(..1).unwrap_or_default()).arg("--socket").arg(self.control());
        command.args(words.get(1..).unwrap_or_default());
        command
    }

    pub fn out(&self) -> String {
        fs::read_to_string(self.dir.join("out")).unwrap()
    }

    /// Waits for a line with that text; after another agent's start for a while instead.
    pub fn wait_log(&self, text: &str) {
        if self.is_other {
            if text == "started" {
                std::thread::sleep(OTHER_START);
            }
            return;
        }
        eventually(&format!("{text:?} in the log"), || match self.log() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        });
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.process.signal(Signal::SIGTERM);
        self.process.wait()
    }
}
