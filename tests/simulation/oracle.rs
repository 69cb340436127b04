//! What sinks should hold, from what is published and nothing else.
//!
//! The exposure policy, the rules and who counts are written here again from design.md ("Exposure policy"), so that no
//! mistake is shared with the reconciler. Nothing of `reconciler` or `policy` is called.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::{Event, Owner, Source};
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::reconciler::{Role, SinkSettings};

/// How long the claims of a lost source stay.
pub const GRACE: Duration = Duration::from_secs(10);

/// UDP ports that a socket is never published for, unless a rule of the user's allows it.
const GUESTS_OWN: [u16; 6] = [67, 68, 546, 547, 323, 5353];

/// A line of the rules file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub protocol: Option<Protocol>,
    pub port: Option<u16>,
    pub source: Option<Source>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map_or("*".to_owned(), |port| port.to_string());
        let source = self.source.map_or(String::new(), |source| format!("@{source}"));
        let verb = if self.allow { "allow" } else { "deny" };
        write!(f, "{verb} {}/{port}{source}", self.protocol.map_or("*", Protocol::as_str))
    }
}

/// What a sink carries, as far as the asker knows: the binding as it is there.
pub type Carries<'a> = &'a dyn Fn(usize, &Binding) -> bool;

pub struct Oracle {
    admin: bool,
    sinks: Vec<SinkSettings>,
    relay: Option<usize>,
    /// The first that matches decides.
    rules: Vec<Rule>,
    claims: BTreeMap<Owner, Bindings>,
    claimants: BTreeMap<Binding, Vec<Owner>>,
    /// What is claimed, by the place where peers have it.
    published_at: BTreeMap<Binding, Vec<Binding>>,
    /// Claimed by sockets alone, after others claimed it, and not seen since.
    doubted: BTreeSet<Binding>,
    lost: BTreeMap<Source, Instant>,
    /// Where peers may have had something since every sink was last seen to be right.
    lately: BTreeSet<Binding>,
    starting_over: bool,
    stopping: bool,
}

impl Oracle {
    pub fn new(admin: bool, sinks: &[SinkSettings]) -> Oracle {
        Oracle {
            admin,
            sinks: sinks.to_vec(),
            relay: sinks.iter().position(|sink| sink.role == Role::Relay),
            rules: Vec::new(),
            claims: BTreeMap::new(),
            claimants: BTreeMap::new(),
            published_at: BTreeMap::new(),
            doubted: BTreeSet::new(),
            lost: BTreeMap::new(),
            lately: BTreeSet::new(),
            starting_over: false,
            stopping: false,
        }
    }

    /// Follows what sources say.
    pub fn note(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Claim { .. } | Event::Snapshot { .. } if self.starting_over => {}
            Event::Claim { owner, bindings } => {
                if owner.source == Source::Sockets {
                    self.doubted.retain(|binding| !bindings.contains_key(binding));
                }
                self.replace(owner, bindings);
            }
            Event::Snapshot { source, claims } => {
                for owner in self.owners(*source) {
                    if !claims.contains_key(&owner.key) {
                        self.replace(&owner, &Bindings::new());
                    }
                }
                for (key, bindings) in claims {
                    self.replace(&Owner { source: *source, key: key.clone() }, bindings);
                }
                if *source == Source::Sockets {
                    self.doubted.clear();
                }
                self.lost.remove(source);
            }
            Event::SourceLost { source, .. } => drop(self.lost.entry(*source).or_insert(now + GRACE)),
            Event::SourceTroubled { source, .. } => drop(self.lost.remove(source)),
            Event::StartOver if !self.stopping && !self.starting_over => {
                self.starting_over = true;
                self.forget();
            }
            Event::Shutdown => {
                (self.stopping, self.starting_over) = (true, false);
                self.forget();
            }
            Event::StartOver
            | Event::Found { .. }
            | Event::Named { .. }
            | Event::Show(_)
            | Event::Reread
            | Event::Tick
            | Event::Answered { .. }
            | Event::SinkReset { .. }
            | Event::SinkSeen { .. }
            | Event::Stale { .. }
            | Event::Skipped { .. } => {}
        }
        let ended: Vec<Source> = self.lost.iter().filter(|(_, until)| **until <= now).map(|(s, _)| *s).collect();
        for source in ended {
            self.lost.remove(&source);
            for owner in self.owners(source) {
                self.replace(&owner, &Bindings::new());
            }
        }
    }

    /// The sources are asked anew.
    pub fn started_over(&mut self) {
        self.starting_over = false;
    }

    /// Another agent knows of nothing.
    pub fn begin_again(&mut self) {
        self.forget();
        self.lost.clear();
        (self.starting_over, self.stopping) = (false, false);
    }

    pub fn adopt(&mut self, rules: &[Rule]) {
        self.rules = rules.to_vec();
        let all: Vec<Binding> = self.claimants.keys().copied().collect();
        all.iter().for_each(|published| self.may_appear(*published));
    }

    fn forget(&mut self) {
        self.claims.clear();
        self.claimants.clear();
        self.published_at.clear();
        self.doubted.clear();
    }

    fn owners(&self, source: Source) -> Vec<Owner> {
        self.claims.keys().filter(|owner| owner.source == source).cloned().collect()
    }

    fn replace(&mut self, owner: &Owner, new: &Bindings) {
        if self.stopping {
            return;
        }
        let before = self.claims.remove(owner).unwrap_or_default();
        for published in before.keys().filter(|b| !new.contains_key(b)) {
            let Some(left) = self.claimants.get_mut(published) else { continue };
            left.retain(|other| other != owner);
            if left.is_empty() {
                self.claimants.remove(published);
                self.doubted.remove(published);
                let at = exposed(self.admin, *published);
                self.published_at.entry(at).or_default().retain(|other| other != published);
            } else if owner.source != Source::Sockets && left.iter().all(|other| other.source == Source::Sockets) {
                self.doubted.insert(*published);
            }
        }
        for published in new.keys().filter(|b| !before.contains_key(b)) {
            let claimants = self.claimants.entry(*published).or_default();
            claimants.push(owner.clone());
            if claimants.len() == 1 {
                self.published_at.entry(exposed(self.admin, *published)).or_default().push(*published);
            }
            self.may_appear(*published);
        }
        if !new.is_empty() {
            self.claims.insert(owner.clone(), new.clone());
        }
    }

    fn may_appear(&mut self, published: Binding) {
        if self.claimants.get(&published).is_some_and(|all| all.iter().any(|o| !self.denies(o.source, &published))) {
            self.lately.insert(exposed(self.admin, published));
        }
    }

    /// Peers had these when the agent began.
    pub fn found(&mut self, bindings: &[Binding]) {
        self.lately.extend(bindings);
    }

    /// Every sink holds what it should: what was published before may be nowhere from now on.
    pub fn all_is_well(&mut self) {
        self.lately.clear();
        let all: Vec<Binding> = self.claimants.keys().copied().collect();
        all.iter().for_each(|published| self.may_appear(*published));
    }

    /// Whether a peer may have this at all: somebody published it lately, no narrower.
    pub fn is_exposed(&self, at: &Binding) -> bool {
        self.lately.contains(at)
    }

    fn denies(&self, source: Source, published: &Binding) -> bool {
        let matches = |rule: &&Rule| {
            rule.protocol.is_none_or(|protocol| protocol == published.protocol)
                && rule.port.is_none_or(|port| port == published.host_port.get())
                && rule.source.is_none_or(|s| s == source)
        };
        let guests_own = source == Source::Sockets
            && published.protocol == Protocol::Udp
            && GUESTS_OWN.contains(&published.host_port.get());
        self.rules.iter().find(matches).map_or(guests_own, |rule| !rule.allow)
    }

    /// Whose claims on a binding count, anywhere. What somebody published is not the socket's that listens for it, also
    /// where a rule denies it.
    fn claimants(&self, published: &Binding) -> impl Iterator<Item = &Owner> {
        let all = self.claimants.get(published).map(Vec::as_slice).unwrap_or_default();
        let sockets_alone = all.iter().all(|owner| owner.source == Source::Sockets);
        all.iter().filter(move |owner| {
            (sockets_alone || owner.source != Source::Sockets) && !self.denies(owner.source, published)
        })
    }

    /// Whether it answers at every address of the guest, so that nobody needs the relay for it.
    fn answers_everywhere(&self, published: &Binding) -> bool {
        let every: IpAddr =
            if published.host_ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        published.host_ip.is_unspecified()
            || (self.relay.is_some() && self.claimants(&Binding { host_ip: every, ..*published }).next().is_some())
    }

    fn is_told(&self, sink: usize, owner: &Owner) -> bool {
        let listens = owner.source == Source::Sockets || owner.key.starts_with("podman:");
        let settings = &self.sinks[sink];
        settings.feeds.contains(&owner.source) && !(settings.role == Role::Listener && listens)
    }

    /// Those on whose behalf a sink should have a published binding now, given what others carry.
    pub fn askers<'a>(
        &'a self,
        sink: usize,
        published: &'a Binding,
        carries: Carries<'a>,
    ) -> impl Iterator<Item = &'a Owner> {
        let settings = &self.sinks[sink];
        let ip = published.host_ip;
        let fits = (!settings.ipv4_only || ip.is_ipv4())
            && match settings.role {
                Role::Peer => true,
                Role::Relay => !self.answers_everywhere(published),
                Role::Listener => published.protocol == Protocol::Tcp && (ip.is_unspecified() || ip.is_loopback()),
            };
        let doubted = self.doubted.contains(published);
        let peer = settings.role == Role::Peer;
        let relay = self.relay.filter(|_| peer && fits && !self.answers_everywhere(published));
        let after = settings.after.map(|ahead| ahead.0);
        let at = exposed(self.admin, *published);
        self.claimants(published).filter(move |owner| {
            fits && self.is_told(sink, owner)
                && !(doubted && owner.source == Source::Sockets)
                && relay.is_none_or(|relay| !self.is_told(relay, owner) || carries(relay, published))
                && after.is_none_or(|ahead| !self.is_told(ahead, owner) || carries(ahead, &at))
        })
    }

    /// What is published that a sink would have as this.
    pub fn published_as(&self, sink: usize, at: &Binding) -> &[Binding] {
        match self.sinks[sink].role {
            Role::Peer => self.published_at.get(at).map(Vec::as_slice).unwrap_or_default(),
            Role::Relay | Role::Listener => {
                self.claimants.get_key_value(at).map(|(at, _)| std::slice::from_ref(at)).unwrap_or_default()
            }
        }
    }

    pub fn is_wanted(&self, sink: usize, at: &Binding, carries: Carries<'_>) -> bool {
        self.published_as(sink, at).iter().any(|published| self.askers(sink, published, carries).next().is_some())
    }

    /// All that a sink should have, if nothing were busy there.
    pub fn wanted(&self, sink: usize, carries: Carries<'_>) -> BTreeSet<Binding> {
        let peer = self.sinks[sink].role == Role::Peer;
        let asked = self.claimants.keys().filter(|p| self.askers(sink, p, carries).next().is_some());
        asked.map(|published| if peer { exposed(self.admin, *published) } else { *published }).collect()
    }

    /// How many of these places on the host several owners claim.
    pub fn shared(&self, of: impl Fn(&Binding) -> bool) -> usize {
        let is_shared = |published: &Vec<Binding>| {
            let mut owners = published.iter().flat_map(|p| self.claimants.get(p).into_iter().flatten());
            let first = owners.next();
            owners.any(|owner| Some(owner) != first)
        };
        self.published_at.iter().filter(|(at, published)| of(at) && is_shared(published)).count()
    }

    pub fn claims(&self) -> &BTreeMap<Owner, Bindings> {
        &self.claims
    }

    /// When the next lost source's claims end.
    pub fn next_end(&self) -> Option<Instant> {
        self.lost.values().min().copied()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping
    }
}

/// The design's exposure table.
fn exposed(admin: bool, published: Binding) -> Binding {
    let host_ip = match published.host_ip {
        IpAddr::V4(ip) if ip.octets()[0] == 127 => ip.into(),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) if admin => published.host_ip,
        IpAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 1).into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if admin => published.host_ip,
        IpAddr::V6(_) => Ipv6Addr::from(1).into(),
    };
    Binding { host_ip, ..published }
}
