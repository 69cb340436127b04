//! Children of the agent's sources: bounded, clean, and gone when the agent is. The launcher is the real agent.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rancher_desktop_agent::source::child::{Child, Limits, Privileges, Run, Runs, Tool, ToolError};
use rancher_desktop_agent::stop::Stop;
use support::eventually;

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), output_bytes_max: 1000 };

fn tool(program: &str) -> Tool {
    Tool::new(program.into(), Privileges::None).launched_by(env!("CARGO_BIN_EXE_rancher-desktop-guestagent").into())
}

/// Runs programs side by side until all have ended, or the sign is raised.
fn run_all(runs: Vec<Result<Run, ToolError>>, stop: &Stop) -> Vec<Result<Vec<u8>, ToolError>> {
    let mut runs = Runs::new(runs);
    loop {
        let now = Instant::now();
        runs.advance(now);
        let Some(deadline) = runs.deadline(now) else { break };
        let fds: Vec<BorrowedFd<'_>> = runs.fds().collect();
        if !stop.wait_readable(&fds, Some(deadline)) {
            break;
        }
    }
    runs.results()
}

fn run(tool: &Tool, args: &[&str], limits: Limits, stop: &Stop) -> Result<Vec<u8>, ToolError> {
    run_all(vec![Run::start(tool, args, limits)], stop).pop().unwrap()
}

fn sh(script: &str, limits: Limits) -> Result<String, ToolError> {
    let output = run(&tool("/bin/sh"), &["-c", script], limits, &Stop::new().unwrap())?;
    Ok(String::from_utf8(output).unwrap())
}

/// The directory in /proc of the process whose id the child prints.
fn printed_process(child: &mut Child) -> PathBuf {
    let mut stdout = child.take_stdout().unwrap();
    let pid = eventually("a process id", || {
        let mut buffer = [0; 16];
        std::io::Read::read(&mut stdout, &mut buffer)
            .map(|n| String::from_utf8_lossy(buffer.get(..n).unwrap()).trim().to_owned())
    });
    PathBuf::from(format!("/proc/{pid}"))
}

#[test]
fn runs_with_nothing_of_the_agents_own() {
    assert_eq!(sh("echo $HOME $USER; pwd; read line || echo no input", LIMITS).unwrap(), "\n/\nno input\n");
    // It is the child's own process that became the program, with no privilege and none to gain.
    let status = sh("grep -E '^(CapEff|NoNewPrivs|SigBlk):' /proc/self/status", LIMITS).unwrap();
    let fields: Vec<&str> = status.split_ascii_whitespace().collect();
    let nothing = "0000000000000000";
    assert_eq!(fields, ["SigBlk:", nothing, "CapEff:", nothing, "NoNewPrivs:", "1"]);
}

#[test]
fn says_why_it_failed() {
    match sh("echo out; echo sorry >&2; exit 4", LIMITS) {
        Err(ToolError::Failed { code: Some(4), message, .. }) => assert_eq!(message, "sorry"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(sh("kill -9 $$", LIMITS), Err(ToolError::Failed { code: None, .. })));
    let missing = run(&tool("/nowhere/at-all"), &["x"], LIMITS, &Stop::new().unwrap()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/at-all"), "{missing}");
    let error = Tool::find("no-such-program-anywhere", Privileges::None).unwrap_err();
    assert!(matches!(error, ToolError::NotFound { .. }), "{error}");
    assert!(Tool::find("sh", Privileges::None).is_ok());
}

#[test]
fn is_bounded_in_time_and_output() {
    let begun = Instant::now();
    let short = Limits { timeout: Duration::from_millis(100), ..LIMITS };
    assert!(matches!(sh("sleep 60", short), Err(ToolError::TimedOut { .. })));
    // With its pipes closed, it is not over yet.
    assert!(matches!(sh("exec >&- 2>&-; sleep 60", short), Err(ToolError::TimedOut { .. })));
    assert!(matches!(sh("yes", LIMITS), Err(ToolError::TooMuch { bytes: 1000, .. })));
    assert!(matches!(sh("yes >&2", short), Err(ToolError::TimedOut { .. })), "the pipe of messages is emptied");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let stop = Stop::new().unwrap();
    stop.raise();
    assert!(matches!(run(&tool("/bin/sleep"), &["60"], LIMITS, &stop), Err(ToolError::Stopped)));
}

#[test]
fn runs_side_by_side() {
    let begun = Instant::now();
    let runs = (0..8).map(|n| Run::start(&tool("/bin/sh"), &["-c", &format!("sleep 0.5; echo {n}")], LIMITS)).collect();
    let results = run_all(runs, &Stop::new().unwrap());
    let shown: Vec<String> = results.into_iter().map(|r| String::from_utf8(r.unwrap()).unwrap()).collect();
    assert_eq!(shown.concat(), "0\n1\n2\n3\n4\n5\n6\n7\n");
    assert!(begun.elapsed() < Duration::from_secs(4), "one after the other");
}

#[test]
fn a_dropped_child_leaves_no_zombie() {
    let mut child = Child::start(&tool("/bin/sh"), &["-c", "echo $$; exec sleep 60"]).unwrap();
    let process = printed_process(&mut child);
    assert!(process.exists());
    drop(child);
    assert!(!process.exists());
}

/// A script around the program may start it as a process of its own, which must not pile up, nor be left.
#[test]
fn what_a_child_has_started_ends_with_it() {
    let mut child = Child::start(&tool("/bin/sh"), &["-c", "sleep 60 & echo $!; wait"]).unwrap();
    let process = printed_process(&mut child);
    assert!(process.exists());
    drop(child);
    // Whoever adopts it reaps it in its own time.
    eventually("its end", || match std::fs::read_to_string(process.join("stat")) {
        Ok(stat) if !stat.contains(") Z ") => Err(stat),
        _ => Ok(()),
    });
}

#[test]
fn the_launchers_argument_is_not_for_others() {
    let agent = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");
    for args in [&["__child"][..], &["__child", "1", "none"], &["__child", "x", "none", "/bin/true"]] {
        let output = std::process::Command::new(agent).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(126), "{args:?}");
    }
    // A parent that is gone: the program is not run.
    let output = std::process::Command::new(agent).args(["__child", "1", "none", "/bin/echo", "ran"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(126), 0));
}
