//! Changes, as people read them in the log: one line each.

use crate::event::{FailureKind, ForwardState, Report, SinkId};

/// Writes the line. `name` tells what a sink is called.
pub(super) fn line<'a>(report: &Report, name: impl Fn(SinkId) -> &'a str) {
    match report {
        Report::Forward { again: true, .. } => {}
        Report::Forward { sink, owner, binding, state, .. } => {
            let sink = name(*sink);
            match state {
                ForwardState::Forwarding => log::info!("forwarding binding={binding} owner={owner} sink={sink}"),
                ForwardState::Withdrawn => log::info!("withdrawn binding={binding} owner={owner} sink={sink}"),
                ForwardState::Failing(failure) => {
                    let kind = match failure.kind {
                        FailureKind::Conflict => "conflict",
                        FailureKind::Denied => "denied",
                        FailureKind::Failed => "failed",
                    };
                    log::warn!("{kind} binding={binding} owner={owner} sink={sink} reason={:?}", failure.reason);
                }
            }
        }
        Report::Peer { sink, problem: None } => log::info!("sink reachable sink={}", name(*sink)),
        Report::Peer { sink, problem: Some(reason) } => {
            log::warn!("sink unreachable, trying on sink={} reason={reason:?}", name(*sink));
        }
        Report::Reset { sink, reason } => {
            log::info!("announcing everything again sink={} reason={reason:?}", name(*sink));
        }
        Report::Source { source, problem: None, .. } => log::info!("source ready source={source}"),
        Report::Source { source, problem: Some(reason), lost: true, losses } => {
            log::warn!("source lost, trying on source={source} losses={losses} reason={reason:?}");
        }
        Report::Source { source, problem: Some(reason), lost: false, .. } => {
            log::warn!("source in trouble, trying on source={source} reason={reason:?}");
        }
        Report::Denied { owner, binding, rule, built_in: false } => {
            log::warn!("denied binding={binding} owner={owner} rule={rule:?}");
        }
        Report::Denied { owner, binding, rule, built_in: true } => {
            log::debug!("not published binding={binding} owner={owner} rule={rule:?}");
        }
        Report::Stale { owner, stale: true } => {
            log::warn!("stale: nothing is left of what it leads to owner={owner}");
        }
        Report::Stale { owner, stale: false } => log::info!("not stale any more owner={owner}"),
        Report::LeftOut { sink, owner, binding, reason } => {
            log::warn!("left out binding={binding} owner={owner} sink={} reason={reason:?}", name(*sink));
        }
        Report::Skipped { source, count, reason } => {
            log::warn!("skipped input source={source} count={count} reason={reason:?}");
        }
        Report::Rules { count, problem: None } => log::info!("rules file read rules={count}"),
        Report::Rules { problem: Some(reason), .. } => {
            log::warn!("rules file not taken, the rules before it stay reason={reason:?}");
        }
        Report::StartingOver => log::info!("starting over: withdrawing everything"),
        Report::StartedOver { left: 0 } => log::info!("starting over: everything is withdrawn, asking the sources"),
        Report::StartedOver { left } => {
            log::warn!("starting over: not everything could be withdrawn yet, asking the sources left={left}");
        }
        Report::Narrowed { owner, published, exposed } => {
            log::warn!("exposed on the host's loopback only owner={owner} published={published} exposed={exposed}")
        }
    }
}
