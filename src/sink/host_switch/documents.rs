//! One document at host-switch: the requests it takes, and what their answers mean.

use std::net::SocketAddrV4;
use std::time::Instant;

use super::api::{Asked, Request, Wrong};
use super::{HostSwitch, STRAY_MAX};
use crate::event::{Answer, Failure, FailureKind};
use crate::ordered::Set;
use crate::port::{Binding, Bindings};
use crate::wire::expose::{self, Exposed};

impl HostSwitch {
    pub(super) fn announce(&mut self, bindings: &Bindings) -> Answer {
        let (fit, unfit): (Vec<Binding>, Vec<Binding>) = bindings.keys().partition(|b| b.host_ip.is_ipv4());
        let refusal = "host-switch: only IPv4 is forwarded there";
        let mut failed: Vec<(Binding, Failure)> = (unfit.into_iter())
            .map(|binding| (binding, Failure { kind: FailureKind::Denied, reason: refusal.into() }))
            .collect();
        for binding in &fit {
            self.unsaved |= self.ours.insert(*binding);
        }
        self.save(false);
        let (there, rest): (Vec<Binding>, Vec<Binding>) = fit.into_iter().partition(|b| self.has(*b));
        let remote = self.config.tap_ip;
        let asked = self.ask(&rest, &|binding| ("expose", expose::expose(binding, remote)));
        let view = self.view.get_or_insert_with(Exposed::new);
        for binding in &asked.done {
            view.insert(*binding, Some(SocketAddrV4::new(remote, binding.host_port.get())));
            self.strays.remove(binding);
        }
        let untold: Vec<Binding> = untold(&rest, &asked);
        if let Some(wrong) = asked.wrong {
            if asked.done.is_empty() && there.is_empty() && matches!(wrong, Wrong::Unreached(_)) {
                rest.iter().for_each(|binding| self.disown(*binding));
                return self.unreachable(wrong.reason());
            }
            let until = Instant::now() + STRAY_MAX;
            self.strays.extend(untold.into_iter().map(|binding| (binding, until)));
            return self.uncertain(wrong.reason());
        }
        if !asked.refused.is_empty() {
            if let Err(reason) = self.look_closer(bindings) {
                return Answer::Uncertain(reason);
            }
        }
        for (binding, words) in asked.refused {
            let leads_to = self.leads_to(binding);
            let failure = match leads_to {
                Some(Some(remote)) if remote == self.remote(binding) => continue,
                Some(other) => {
                    let other = other.map_or_else(|| "elsewhere".to_owned(), |remote| format!("to {remote}"));
                    let reason = format!("host-switch: {binding} already leads {other}");
                    Failure { kind: FailureKind::Conflict, reason }
                }
                None => Failure { kind: kind(&words), reason: format!("host-switch: {words}") },
            };
            self.disown(binding);
            failed.push((binding, failure));
        }
        for binding in untold {
            self.disown(binding);
            failed.push((binding, too_slow()));
        }
        self.save(true);
        Answer::Done { failed }
    }

    pub(super) fn withdraw(&mut self, bindings: &Bindings) -> Answer {
        // What was cut off may have come since the list was read.
        let may_be = |b: &Binding| self.strays.contains_key(b) && self.leads_to(*b).is_none();
        let (there, gone): (Vec<Binding>, Vec<Binding>) = bindings.keys().partition(|b| self.has(**b) || may_be(b));
        let asked = self.ask(&there, &|binding| ("unexpose", expose::unexpose(binding)));
        for binding in &asked.done {
            self.view.as_mut().and_then(|view| view.remove(binding));
            self.strays.remove(binding);
        }
        gone.iter().chain(&asked.done).for_each(|binding| self.disown(*binding));
        let untold = untold(&there, &asked);
        if let Some(wrong) = asked.wrong {
            let unreached = asked.done.is_empty() && matches!(wrong, Wrong::Unreached(_));
            self.save(true);
            return if unreached { self.unreachable(wrong.reason()) } else { self.uncertain(wrong.reason()) };
        }
        if !asked.refused.is_empty() {
            if let Err(reason) = self.look_closer(bindings) {
                return Answer::Uncertain(reason);
            }
        }
        let mut failed = Vec::new();
        for (binding, words) in asked.refused {
            if self.has(binding) {
                let reason = format!("host-switch: {words}");
                failed.push((binding, Failure { kind: FailureKind::Failed, reason }));
            } else {
                self.disown(binding);
            }
        }
        failed.extend(untold.into_iter().map(|binding| (binding, too_slow())));
        self.save(true);
        Answer::Done { failed }
    }

    fn ask(&self, bindings: &[Binding], request: Request<'_>) -> Asked {
        let end = Instant::now() + self.patience.document;
        if bindings.is_empty() { Asked::default() } else { self.api.ask(bindings, end, self.patience.request, request) }
    }
}

/// Those of `all` that have no answer.
fn untold(all: &[Binding], asked: &Asked) -> Vec<Binding> {
    let told: Set<Binding> =
        asked.done.iter().chain(asked.refused.iter().map(|(binding, _)| binding)).copied().collect();
    all.iter().filter(|binding| !told.contains(binding)).copied().collect()
}

fn too_slow() -> Failure {
    Failure { kind: FailureKind::Failed, reason: "host-switch: it is too slow, this is still to be done".into() }
}

/// What a server's words mean. They are the system's, as Go has them on Linux, macOS and Windows.
fn kind(words: &str) -> FailureKind {
    let says = |known: &str| words.contains(known);
    if says("address already in use") || says("Only one usage of each socket address") {
        FailureKind::Conflict
    } else if says("permission denied") || says("forbidden by its access permissions") {
        FailureKind::Denied
    } else {
        FailureKind::Failed
    }
}
