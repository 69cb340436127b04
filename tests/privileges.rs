//! SECURITY.md's tables against the real programs: what each configuration may do, which descriptors it holds, what its
//! children get, and who can open the files that it makes. The tables are read, so that they and the programs agree.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caps::Capability;
use support::agent::{Agent, program};
use support::engine_stub::{EngineStub, id, ports};
use support::host_switch::HostSwitch;
use support::vm::Vm;
use support::{Process, TempDir, eventually, run};

const HOST: &str = env!("CARGO_BIN_EXE_rancher-desktop-hostagent");
const CLOEXEC: u32 = 0o2_000_000;

/// The rows of the table below the line that begins so, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap();
    let section =
        page.split(&format!("\n### {heading}\n")).nth(1).expect(heading).split("\n#").next().unwrap().to_owned();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = section.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect();
    assert!(!rows.is_empty(), "{heading}");
    rows
}

/// `A`, `B` as a set; `none` as an empty one.
fn names(cell: &str) -> BTreeSet<String> {
    cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).filter(|name| name != "none").collect()
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    status.lines().filter_map(field).collect()
}

fn set(status: &BTreeMap<String, String>, name: &str) -> BTreeSet<String> {
    let bits = u64::from_str_radix(&status[name], 16).unwrap();
    let all = caps::all().into_iter().filter(|cap| bits & cap.bitmask() != 0);
    let known: BTreeSet<String> = all.map(|cap| cap.to_string()).collect();
    assert_eq!(known.len(), bits.count_ones() as usize, "{name}: capabilities that the library does not know");
    known
}

/// Of these, what whoever runs the tests has to give.
fn ours(names: &BTreeSet<String>) -> BTreeSet<String> {
    let own = set(&status(std::process::id()), "CapPrm");
    names.iter().filter(|name| own.contains(*name)).cloned().collect()
}

/// What the kernel says of a process, against a row of the table.
fn assert_privileges(what: &str, pid: u32, effective: &BTreeSet<String>, aside: &BTreeSet<String>, umask: &str) {
    let status = status(pid);
    let (effective, aside) = (ours(effective), ours(aside));
    assert_eq!(set(&status, "CapEff"), effective, "{what}: in effect");
    assert_eq!(set(&status, "CapPrm"), &effective | &aside, "{what}: permitted");
    assert_eq!(set(&status, "CapInh"), BTreeSet::new(), "{what}: inheritable");
    assert_eq!(set(&status, "CapAmb"), BTreeSet::new(), "{what}: ambient");
    // Without that capability nobody can shrink it, and it is of no use to a process that can gain nothing.
    if caps::has_cap(None, caps::CapSet::Effective, Capability::CAP_SETPCAP).unwrap() {
        assert_eq!(set(&status, "CapBnd"), effective, "{what}: bounding");
    }
    assert_eq!(status["NoNewPrivs"], "1", "{what}");
    assert_eq!(status["Umask"], umask, "{what}");
    // And so every thread.
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // It may have ended.
        let Ok(text) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(line("CapEff:"), status["CapEff"], "{what}");
        assert_eq!(line("NoNewPrivs:"), "1", "{what}");
    }
}

/// Descriptors with what they are and whether a program that is started gets them.
fn descriptors(pid: u32) -> BTreeMap<u32, (String, bool)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let open = |path: PathBuf| {
        // It may be closed by now.
        let target = fs::read_link(&path).ok()?.to_str()?.to_owned();
        let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        Some((number, (target, u32::from_str_radix(&flags, 8).unwrap() & CLOEXEC == 0)))
    };
    entries.filter_map(open).collect()
}

/// `socket`, `pipe`, `eventpoll`, `eventfd`, `inotify`, `/proc/net`, `output` where it is a standard one's; of anything else its
/// path.
fn kind(target: &str, standard: &[&String]) -> String {
    if standard.iter().any(|other| *other == target) && !target.starts_with("/dev/") {
        return "output".into();
    }
    if target.starts_with("/proc/") && target.contains("/net/") {
        return "/proc/net".into();
    }
    let name = target.strip_prefix("anon_inode:").unwrap_or(target).trim_matches(['[', ']']);
    name.split(":[").next().unwrap().to_owned()
}

/// What was left open for the agent is closed, and of its own only the standard ones are there for others.
fn assert_descriptors(what: &str, pid: u32, kinds: &BTreeSet<String>) {
    // A file that is being read is closed again.
    eventually(what, || {
        let open = descriptors(pid);
        let standard: Vec<&String> = open.range(..=2).map(|(_, (target, _))| target).collect();
        for (number, (target, inherited)) in &open {
            assert_eq!(*inherited, *number <= 2, "{what}: descriptor {number} is {target}");
        }
        let rest = open.range(3..).map(|(_, (target, _))| kind(target, &standard));
        let unknown: Vec<String> = rest.filter(|kind| !kinds.contains(kind)).collect();
        if unknown.is_empty() { Ok(()) } else { Err(unknown) }
    });
}

/// A case of the table, running.
fn start(case: &str, flags: &str, dir: &TempDir) -> Agent {
    let flags = flags.trim_matches('`').replace("DIR", dir.path().to_str().unwrap());
    let mut words: Vec<&str> = flags.split(' ').collect();
    let program = words.remove(0);
    let engine = format!("unix://{}", dir.join("docker.sock").display());
    match program {
        "guestagent" => {
            let ctr = dir.join("ctr").display().to_string();
            let more = if flags.contains("-containerd ") { vec!["--ctr", &ctr] } else { Vec::new() };
            let state = dir.join("state/state.json").display().to_string();
            let args = [&words[..], &more, &["--state-file", &state]].concat();
            Agent::run_program(&support::agent::program(), None, &args, &[("DOCKER_HOST", &engine)])
        }
        "hostagent" => Agent::host(None, &words),
        other => panic!("{case}: no program {other}"),
    }
}

#[test]
#[ignore = "needs root, to look at descriptors"]
fn each_configuration_keeps_what_it_needs_and_nothing_else() {
    for row in table("Privileges of each configuration") {
        let [case, flags, effective, aside, kinds] = &row[..] else { panic!("{row:?}") };
        if flags.contains("-kubernetes") && cfg!(not(feature = "kubernetes")) {
            continue;
        }
        // Rules of the machine are nobody's business here: those are read in a namespace, below.
        if flags.contains("-iptables ") {
            continue;
        }
        let dir = TempDir::new();
        let agent = start(case, flags, &dir);
        let umask = if flags.contains("hostagent") { "0177" } else { "0077" };
        assert_privileges(case, agent.pid(), &names(effective), &names(aside), umask);
        assert_descriptors(case, agent.pid(), &names(kinds));
        assert_eq!(agent.stop(), Some(0), "{case}");
    }
}

#[test]
#[ignore = "needs root and iptables (scripts/deps.sh cni)"]
fn readers_of_rules_keep_what_reading_takes() {
    let rows = table("Privileges of each configuration");
    let rows: Vec<_> = rows.iter().filter(|row| row[1].contains("-iptables ")).collect();
    assert!(!rows.is_empty());
    for row in rows {
        let vm = Vm::new();
        let dir = TempDir::new();
        run(vm.guest.command("iptables-nft").args(["-t", "nat", "-N", "CNI-DN-1"]));
        let flags = row[1].trim_matches('`').replace("DIR", dir.path().to_str().unwrap());
        let agent = Agent::run(Some(&vm.guest), &flags.split(' ').skip(1).collect::<Vec<_>>());
        // The real iptables, with what is left to it.
        agent.wait_log("source ready source=nat");
        assert_privileges(&row[0], agent.pid(), &names(&row[2]), &names(&row[3]), "0077");
        assert_descriptors(&row[0], agent.pid(), &names(&row[4]));
    }
}

/// A script that says who it is, and waits until it is killed.
fn waiting_script(path: &Path) {
    run(Command::new("mkfifo").arg(path.with_extension("fifo")));
    fs::write(path, "#!/bin/sh\necho $$ >\"$0.new\"; mv \"$0.new\" \"$0.pid\"\n: <\"$0.fifo\"\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn pid_of(path: &Path) -> u32 {
    eventually("a child", || fs::read_to_string(path.with_extension("pid")).map(|pid| pid.trim().parse().unwrap()))
}

/// What SECURITY.md says of every child.
fn assert_clean_child(what: &str, pid: u32, script: &Path, effective: &str) {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(String::from_utf8_lossy(&environment), "", "{what}: environment");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"), "{what}");
    assert_privileges(what, pid, &names(effective), &BTreeSet::new(), "0077");
    for (number, (target, inherited)) in descriptors(pid) {
        let expect = ["/dev/null", "pipe", "pipe"].get(number as usize).copied();
        // The shell has its script open, for itself.
        let own = !inherited && Path::new(&target) == script;
        assert!(own || expect == Some(kind(&target, &[]).as_str()), "{what}: descriptor {number} is {target}");
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(String::from_utf8_lossy(&line).contains(script.to_str().unwrap()), "by its absolute path");
}

fn children(case: &str) -> String {
    table("Children").into_iter().find(|row| row[0].contains(case)).expect(case)[1].clone()
}

/// The agent as somebody starts it who has left descriptors open, and has much in the environment.
fn careless(dir: &TempDir, args: &[&str]) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "exec 7</dev/zero 9>/dev/full; exec \"$@\"", "sh"]).arg(program()).args(args);
    command.arg("--control-socket").arg(dir.join("control.sock"));
    let log = fs::File::create(dir.join("log")).unwrap();
    command.env("LD_PRELOAD_NOT", "1").env("HTTP_PROXY", "http://127.0.0.1:9").env("IFS", "x");
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
}

#[test]
#[ignore = "needs root, to look at descriptors"]
fn children_get_nothing_but_their_pipes() {
    let dir = TempDir::new();
    let (ctr, socket) = (dir.join("ctr"), dir.join("c.sock"));
    waiting_script(&ctr);
    let _containerd = UnixListener::bind(&socket).unwrap();
    let words = ["-containerd", "-containerdSock", socket.to_str().unwrap(), "--ctr", ctr.to_str().unwrap()];
    let agent = careless(&dir, &[&words[..], &["--sink", "stdout:", "-iptables=false"]].concat());
    let child = pid_of(&ctr);
    assert_clean_child("ctr", child, &ctr, &children("`ctr`"));
    for (number, (target, _)) in descriptors(agent.pid()) {
        assert!(!["/dev/zero", "/dev/full"].contains(&target.as_str()), "descriptor {number} is {target}");
    }
}

#[test]
#[ignore = "needs root and iptables (scripts/deps.sh cni)"]
fn tools_that_read_rules_get_what_reading_takes() {
    let (vm, dir) = (Vm::new(), TempDir::new());
    run(vm.guest.command("iptables-nft").args(["-t", "nat", "-N", "CNI-DN-1"]));
    let tool = dir.join("iptables-nft-save");
    waiting_script(&tool);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let args = ["-iptables", "--sink", "stdout:"];
    let agent = Agent::run_program(program().as_ref(), Some(&vm.guest), &args, &[("PATH", &path)]);
    assert_clean_child("iptables-nft-save", pid_of(&tool), &tool, &children("`iptables-nft-save`"));
    drop(agent);
}

#[test]
fn files_are_for_their_own_user() {
    let mode = |path: &Path| {
        let meta = eventually("a file", || fs::symlink_metadata(path));
        assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw());
        format!("{:04o}", meta.mode() & 0o7777)
    };
    let dir = TempDir::new();
    let (engine, server) = (EngineStub::new(), HostSwitch::start());
    let tap = format!("127.10.{}.{}", std::process::id() % 250 + 1, support::unique() % 250 + 1);
    let (state, control) = (dir.join("state/deep/state.json"), dir.join("run/deep/control.sock"));
    let url = server.url();
    let own = ["-sockets=false", "--sink", &url, "-tap-interface-ip", &tap, "--state-file", state.to_str().unwrap()];
    let agent =
        Agent::start(None, &engine.socket(), &[&own[..], &["--control-socket", control.to_str().unwrap()]].concat());
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    let document = dir.join("documents.sock");
    let host = Agent::host(None, &["--listen", &format!("unix://{}", document.display())]);
    let mut seen = BTreeSet::new();
    for row in table("Files") {
        let path = match row[0].as_str() {
            "control socket" => control.clone(),
            "its directory, where it was not there" => control.parent().unwrap().to_owned(),
            "state file of host-switch" => state.clone(),
            "the directory of that, where it was not there" => state.parent().unwrap().to_owned(),
            "document socket of the host end" => document.clone(),
            other => panic!("{other:?}: what is that?"),
        };
        assert_eq!(mode(&path), row[1].trim_matches('`'), "{}", row[0]);
        seen.insert(path);
    }
    // And nothing else is made.
    let mut open = vec![dir.path().to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
            let below = entry.path();
            let known = seen.iter().any(|known| known == &below || known.starts_with(&below));
            assert!(known, "{} is in no table", below.display());
            if entry.file_type().unwrap().is_dir() {
                open.push(below);
            }
        }
    }
    drop((agent, host));
}

/// The kernel gives the entries of a process that keeps to itself to root, whoever it runs as.
#[test]
#[ignore = "needs root and setpriv (scripts/deps.sh commands)"]
fn memory_is_not_for_others_of_the_same_user() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // A build's directory may be closed to others.
    let programs = [program(), PathBuf::from(HOST)].map(|from| {
        let to = dir.join(from.file_name().unwrap().to_str().unwrap());
        fs::copy(from, &to).unwrap();
        to
    });
    let (control, documents) = (dir.join("control.sock"), dir.join("documents.sock"));
    let listen = format!("unix://{}", documents.display());
    let words = [
        vec!["-docker", "--sink", "stdout:", "--control-socket", control.to_str().unwrap()],
        vec!["--listen", &listen],
    ];
    for ((program, words), socket) in programs.iter().zip(words).zip([&control, &documents]) {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(words);
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        eventually("its socket", || fs::metadata(socket));
        let uid = |name: &str| fs::metadata(format!("/proc/{}/{name}", process.pid())).unwrap().uid();
        assert_eq!(status(process.pid())["Uid"].split_whitespace().next(), Some("65534"));
        assert_eq!((uid("mem"), uid("environ"), uid("fd")), (0, 0, 0), "{}", program.display());
    }
}

#[test]
fn a_table_has_each_case_once() {
    let rows = table("Privileges of each configuration");
    let cases: BTreeSet<&String> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(cases.len(), rows.len());
    for name in rows.iter().flat_map(|row| &names(&row[2]) | &names(&row[3])) {
        assert!(name.parse::<Capability>().is_ok(), "{name} is no capability");
    }
}
