//! `rancher-desktop-guestagent`: commands, arguments, log, privileges, signals, exit code. Everything else is in the library.

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use caps::Capability;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use rancher_desktop_agent::agent::{Agent, needed_capabilities, needs_relay, outward};
use rancher_desktop_agent::config::usage::USAGE;
use rancher_desktop_agent::config::{self, Config, Wish};
use rancher_desktop_agent::event::{Event, Source};
use rancher_desktop_agent::queue::Sender;
use rancher_desktop_agent::source::child;
use rancher_desktop_agent::supervisor::spawn;
use rancher_desktop_agent::{cli, holder, logging, privileges, rules_file};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// A signal so soon after the first is the same wish.
const SAME_SIGNAL: Duration = Duration::from_millis(100);
/// As a shell has it for a program that cannot be run.
const EXIT_NOT_RUN: u8 = 126;
/// What the agent makes is for its own user.
const UMASK: Mode = Mode::S_IRWXG.union(Mode::S_IRWXO);

fn main() -> ExitCode {
    if let Some(error) = child::become_program(std::env::args_os().skip(1)) {
        complain(&error);
        return ExitCode::from(EXIT_NOT_RUN);
    }
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(exit) = cli::run(&words) {
        return ExitCode::from(exit);
    }
    let wish = match config::read(words, |name| std::env::var_os(name)) {
        Ok(wish) => wish,
        Err(error) => {
            complain(&format!("{error}\nTry 'rancher-desktop-guestagent --help'."));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let wish = match read_rules(wish) {
        Ok(wish) => wish,
        Err(error) => {
            complain(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match wish {
        Wish::Help => print(&USAGE.help()),
        Wish::Version => print(concat!("rancher-desktop-guestagent ", env!("CARGO_PKG_VERSION"), "\n")),
        Wish::Check(config) => print(&format!("{}\n", summary(&config))),
        Wish::Run(config) => {
            if let Err(error) = logging::start(config.log_format, config.log_level) {
                complain(&error.to_string());
                return ExitCode::from(EXIT_FAILED);
            }
            match run(&config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    log::error!("{error}");
                    ExitCode::from(EXIT_FAILED)
                }
            }
        }
    }
}

/// Adds the rules of the rules file: the agent does not start with fewer than it was given. Read as it can be read again later,
/// without the right to pass over permissions.
fn read_rules(mut wish: Wish) -> Result<Wish, String> {
    if let Wish::Run(config) | Wish::Check(config) = &mut wish {
        if let Some(path) = &config.rules_file {
            config.policy = config.policy.with_file_rules(privileges::without(|| rules_file::read(path))?);
        }
    }
    Ok(wish)
}

/// Unlike `eprintln!`, does not panic, and so change the exit code, when it cannot be written.
fn complain(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("rancher-desktop-guestagent: {text}\n").as_bytes());
}

/// Prints to standard output; a reader that went away is not an error.
fn print(text: &str) -> ExitCode {
    match io::Write::write_all(&mut io::stdout(), text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}

fn summary(config: &Config) -> String {
    let docker = config.docker.iter().map(|socket| format!("source=docker:{}", socket.display()));
    let containerd = config.containerd.iter().map(|c| format!("source=containerd:{}", c.socket.display()));
    let kubernetes = config.kubernetes.iter().map(|k| {
        let insecure = if k.insecure_tls { " insecure-kubernetes-tls" } else { "" };
        format!("source=kubernetes:{} services={}{insecure}", k.kubeconfig.display(), k.listener_ip)
    });
    let nat = config.nat_interval.iter().map(|_| "source=nat".to_owned());
    let sinks = config.sinks.iter().map(|(sink, feeds)| match *feeds {
        Source::ALL | Source::WITH_AGENT => format!("sink={sink}"),
        feeds => format!("sink={sink}<{}", feeds.iter().map(|s| s.as_str()).collect::<Vec<_>>().join("+")),
    });
    let sockets = config.socket_interval.iter().map(|_| "source=sockets".to_owned());
    let relay = outward(config).into_iter().map(|outward| format!("relay={outward}"));
    let exposure = if config.policy.admin { "exposure=as-published" } else { "exposure=loopback" };
    docker
        .chain(containerd)
        .chain(kubernetes)
        .chain(nat)
        .chain(sockets)
        .chain(sinks)
        .chain(relay)
        .chain([exposure.to_owned()])
        .chain(config.policy.rules.iter().filter(|rule| !rule.built_in).map(|rule| format!("{rule:#}")))
        .collect::<Vec<_>>()
        .join(" ")
}

fn run(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    privileges::isolate(UMASK)?;
    // Blocked before any thread starts, so that only the signal thread sees them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block()?;
    // Only the relay can find a port taken that is published nowhere else, and then tells by whom.
    let aside: &[Capability] = if needs_relay(config) { &holder::CAPABILITIES } else { &[] };
    privileges::drop_to(&needed_capabilities(config), aside)?;
    let agent = Agent::start(config, privileges::raise_file_limit()?)?;
    watch_signals(signals, agent.sender(), config.rules_file.is_some())?;
    log::info!("started version={} configuration={:?}", env!("CARGO_PKG_VERSION"), summary(config));
    agent.run();
    Ok(())
}

/// The first signal asks for a shutdown, another one ends the process at once; but where there is a rules file, SIGHUP asks
/// for it to be read again. The thread lives as long as the process.
fn watch_signals(signals: SigSet, events: Sender<Event>, has_rules_file: bool) -> io::Result<()> {
    let run = move || {
        let mut first: Option<Instant> = None;
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGHUP && has_rules_file {
                // Fails when the agent has ended, and the rules do not matter any more.
                let _ = events.send(Event::Reread);
                continue;
            }
            match first {
                // timeout(1) signals the program, and then its whole group.
                Some(first) if first.elapsed() < SAME_SIGNAL => {}
                None if events.send(Event::Shutdown).is_ok() => first = Some(Instant::now()),
                Some(_) | None => std::process::exit(128 + signal as i32),
            }
        }
    };
    spawn("signals", Box::new(run)).map(drop)
}
