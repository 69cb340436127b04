//! The readers: each is one tool that prints rules of one kind, with what it printed last.
//!
//! A read that fails, or of which a part is missing, leaves the last view as it was, and is tried again: at once where
//! that may help, else when the rules change.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::names::Names;
use super::pace::Pace;
use crate::parse::nat::View;
use crate::parse::{ParseError, iptables, netlink, nftables};
use crate::source::child::{Limits, Privileges, Run, Runs, Tool, ToolError};

/// Bounds of one tool's run. 5,000 rules make about 1 MB, as JSON 3 MB.
const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), output_bytes_max: 16 << 20 };

/// The exit code of iptables for "somebody else is at it, try again".
const BUSY: i32 = 4;

/// How long what may pass by itself goes on before people are told.
const LASTING: Duration = Duration::from_secs(5);

/// Which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// iptables' rules kept in nftables: table `ip nat`.
    Iptables,
    /// The same of IPv6: table `ip6 nat`.
    Ip6tables,
    /// portmap's own nftables tables, of both families.
    Nftables,
    /// iptables' rules of the older kind.
    IptablesLegacy,
    /// The same of IPv6.
    Ip6tablesLegacy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] =
        [Kind::Iptables, Kind::Ip6tables, Kind::Nftables, Kind::IptablesLegacy, Kind::Ip6tablesLegacy];

    /// The one that an nftables table belongs to, if any does.
    pub fn of_table(family: u8, name: &[u8]) -> Option<Kind> {
        match (family, name) {
            (netlink::IPV4, b"nat") => Some(Kind::Iptables),
            (netlink::IPV6, b"nat") => Some(Kind::Ip6tables),
            (netlink::IPV4 | netlink::IPV6, name) if name == nftables::TABLE.as_bytes() => Some(Kind::Nftables),
            _ => None,
        }
    }

    /// The kernel's list of tables of this kind that are in use; `None`: changes are told.
    pub fn names_file(self) -> Option<&'static str> {
        match self {
            Kind::Iptables | Kind::Ip6tables | Kind::Nftables => None,
            Kind::IptablesLegacy => Some("/proc/thread-self/net/ip_tables_names"),
            Kind::Ip6tablesLegacy => Some("/proc/thread-self/net/ip6_tables_names"),
        }
    }

    fn program(self) -> &'static str {
        match self {
            Kind::Iptables => "iptables-nft-save",
            Kind::Ip6tables => "ip6tables-nft-save",
            Kind::Nftables => "nft",
            Kind::IptablesLegacy => "iptables-legacy-save",
            Kind::Ip6tablesLegacy => "ip6tables-legacy-save",
        }
    }

    fn package(self) -> &'static str {
        if self == Kind::Nftables { "nftables" } else { "iptables" }
    }

    fn commands(self) -> &'static [&'static [&'static str]] {
        match self {
            // Whether a table exists is asked side by side with its rules: its absence is told by nothing but text.
            Kind::Nftables => &[
                &["-j", "list", "tables"],
                &["-j", "list", "table", "ip", nftables::TABLE],
                &["-j", "list", "table", "ip6", nftables::TABLE],
            ],
            Kind::Iptables | Kind::Ip6tables | Kind::IptablesLegacy | Kind::Ip6tablesLegacy => &[&["-t", "nat"]],
        }
    }

    /// The program, if it is installed.
    pub fn tool(self) -> Result<Tool, ToolError> {
        Tool::find(self.program(), Privileges::NetAdmin)
    }

    fn view(self, results: Vec<Result<Vec<u8>, ToolError>>) -> Result<View, Failure> {
        let failed = |error: ParseError| {
            let settled = matches!(error, ParseError::Foreign(_) | ParseError::TooMany { .. });
            let outlook = if settled { Outlook::Settled } else { Outlook::Lasting };
            Failure { reason: format!("what {} printed: {error}", self.program()), outlook }
        };
        let mut results = results.into_iter();
        let mut next = || results.next().unwrap_or(Err(ToolError::Stopped));
        let first = next()?;
        if self != Kind::Nftables {
            return iptables::save(&first).map_err(failed);
        }
        let mut view = View::default();
        for family in ["ip", "ip6"] {
            let rules = next();
            if nftables::has_table(&first, family).map_err(failed)? {
                view.merge(&nftables::table(&rules?).map_err(failed)?);
            }
        }
        Ok(view)
    }
}

/// What a failed read can hope for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    /// It may well pass by itself; people hear of it when it does not.
    Passing,
    /// People have to know of it at once. It is tried again.
    Lasting,
    /// It is the rules' doing, and will be the same until they change.
    Settled,
}

/// Why a read failed.
#[derive(Debug)]
struct Failure {
    reason: String,
    outlook: Outlook,
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Failure {
        let passing = matches!(error, ToolError::Failed { code: Some(BUSY), .. } | ToolError::TimedOut { .. });
        let outlook = if passing { Outlook::Passing } else { Outlook::Lasting };
        Failure { reason: error.to_string(), outlook }
    }
}

/// One of them.
pub struct Reader {
    /// Which rules it reads.
    pub kind: Kind,
    /// What it saw last. Without one while it is wanted, the whole is not known yet.
    pub view: Option<View>,
    /// The list that says whether such rules are in use, where the kernel tells of no change.
    pub names: Option<Names>,
    wanted: bool,
    pace: Pace,
    /// The shortest time between the beginnings of two reads.
    interval: Duration,
    running: Option<(Runs, Instant)>,
    /// The last failure, and when the first one in a row was.
    failure: Option<(Failure, Instant)>,
}

impl Reader {
    /// Reads nothing until something changes.
    pub fn new(kind: Kind, interval: Duration) -> Reader {
        let (names, pace) = (kind.names_file().map(Names::new), Pace::default());
        Reader { kind, view: None, names, wanted: false, pace, interval, running: None, failure: None }
    }

    /// Its rules may have changed, or are wanted for the first time.
    pub fn change(&mut self, now: Instant) {
        self.wanted = true;
        self.pace.change(now);
    }

    /// Whether it counts.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Its kind of rules is not in use any more. `true`: it was.
    pub fn forget(&mut self) -> bool {
        let (was, names) = (self.wanted, self.names.take());
        *self = Reader { names, ..Reader::new(self.kind, self.interval) };
        was
    }

    /// Starts its tool if that is due.
    pub fn start(&mut self, now: Instant) {
        if self.running.is_some() || self.pace.due().is_none_or(|due| due > now) {
            return;
        }
        self.pace.begin();
        match self.kind.tool() {
            Ok(tool) => {
                let runs = self.kind.commands().iter().map(|args| Run::start(&tool, args, LIMITS)).collect();
                self.running = Some((Runs::new(runs), now));
            }
            Err(error) => {
                let package = self.kind.package();
                let reason = format!("there are rules to read, but {error}: install the package {package}");
                self.fail(Failure { reason, outlook: Outlook::Lasting }, now);
            }
        }
    }

    /// Takes what its tool has printed. `true`: something has come of it.
    pub fn advance(&mut self, now: Instant) -> bool {
        let Some((mut runs, begun)) = self.running.take() else { return false };
        runs.advance(now);
        if runs.deadline(now).is_some() {
            self.running = Some((runs, begun));
            return false;
        }
        // Reading takes half of the time at most, however long it takes.
        let took = now.saturating_duration_since(begun);
        let next = (begun + self.interval).max(now + took);
        match self.kind.view(runs.results()) {
            Ok(view) => {
                self.view = Some(view);
                self.failure = None;
                self.pace.succeeded(next);
            }
            Err(failure) if failure.outlook == Outlook::Settled => {
                self.note(failure, now);
                self.pace.succeeded(next);
            }
            Err(failure) => self.fail(failure, now),
        }
        true
    }

    fn fail(&mut self, failure: Failure, now: Instant) {
        self.note(failure, now);
        self.pace.failed(now);
    }

    fn note(&mut self, failure: Failure, now: Instant) {
        self.wanted = true;
        log::debug!("nat: read failed reader={:?} reason={:?}", self.kind, failure.reason);
        let since = self.failure.as_ref().map_or(now, |(_, since)| *since);
        self.failure = Some((failure, since));
    }

    /// What people have to know of.
    pub fn trouble(&self, now: Instant) -> Option<&str> {
        let (failure, since) = self.failure.as_ref()?;
        (failure.outlook != Outlook::Passing || now >= *since + LASTING).then_some(failure.reason.as_str())
    }

    /// What to wait for.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().flat_map(|(runs, _)| runs.fds())
    }

    /// Until when.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let told = self.failure.as_ref().map(|(_, since)| *since + LASTING).filter(|at| *at > now);
        let next = match &self.running {
            Some((runs, _)) => runs.deadline(now),
            None => self.pace.due(),
        };
        told.into_iter().chain(next).min()
    }
}
