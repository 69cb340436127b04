//! Events, listings and look-ups in every order that they may come in.

use super::*;
use std::num::NonZeroU16;

use crate::port::{Binding, Protocol};

mod simulation;

fn c(id: &str) -> Container {
    Container::new("n", id).unwrap()
}

fn bindings(ports: &[u16]) -> Bindings {
    let port = |port: &u16| NonZeroU16::new(*port).unwrap();
    let host_ip = "0.0.0.0".parse().unwrap();
    let binding = |p| (Binding { protocol: Protocol::Tcp, host_ip, host_port: port(p) }, port(p));
    ports.iter().map(binding).collect()
}

fn ports(ports: &[u16]) -> Answer {
    Answer::Ports(Published { bindings: bindings(ports), ..Published::default() })
}

fn failed() -> Answer {
    Answer::Failed("no".into())
}

fn start(tasks: &mut Tasks, id: &str, pid: u32) -> Option<Ticket> {
    assert_eq!(tasks.follow(TaskEvent::Started(c(id), pid)), News::default());
    next(tasks, id)
}

fn next(tasks: &mut Tasks, id: &str) -> Option<Ticket> {
    let mut urgencies = [Urgency::Event, Urgency::Listing, Urgency::Refresh].into_iter();
    let (ticket, container) = urgencies.find_map(|urgency| tasks.next_look_up(urgency))?;
    assert_eq!(container, c(id));
    Some(ticket)
}

fn end(tasks: &mut Tasks, id: &str) -> News {
    tasks.follow(TaskEvent::Ended(c(id), None))
}

fn list(tasks: &mut Tasks, running: &[(&str, u32, bool)]) {
    tasks.begin_listing();
    for (id, pid, recorded) in running {
        tasks.listed(c(id), *pid, *recorded);
    }
    tasks.end_listing();
}

fn claim(id: &str, ports: &[u16]) -> News {
    News { claim: Some((c(id).key().clone(), bindings(ports))), ..News::default() }
}

#[test]
fn a_name_is_told_with_what_it_is_the_name_of() {
    let mut tasks = Tasks::default();
    let called = |ports| {
        Answer::Ports(Published { bindings: bindings(ports), name: Some("web".into()), ..Published::default() })
    };
    let ticket = start(&mut tasks, "a", 1).unwrap();
    assert_eq!(tasks.answer(ticket, called(&[80])), News { name: Some("web".into()), ..claim("a", &[80]) });
    tasks.follow(TaskEvent::Updated(c("a")));
    let ticket = next(&mut tasks, "a").unwrap();
    assert_eq!(tasks.answer(ticket, called(&[])), claim("a", &[]), "it publishes nothing any more");
    let ticket = start(&mut tasks, "b", 2).unwrap();
    assert_eq!(tasks.answer(ticket, called(&[])), News::default());
}

/// A task that is looked up and publishes these ports.
fn known(id: &str, pid: u32, published: &[u16]) -> Tasks {
    let mut tasks = Tasks::default();
    let ticket = start(&mut tasks, id, pid).unwrap();
    assert_eq!(tasks.answer(ticket, ports(published)), claim(id, published));
    tasks
}

#[test]
fn a_task_is_looked_up_once_and_its_end_asks_nobody() {
    let mut tasks = known("a", 5, &[80]);
    assert_eq!(tasks.claims().len(), 1);
    list(&mut tasks, &[("a", 5, true)]);
    assert!(next(&mut tasks, "a").is_none() && tasks.is_listing_looked_up());
    assert_eq!(end(&mut tasks, "a"), claim("a", &[]));
    assert_eq!(end(&mut tasks, "a"), News::default(), "exit, then delete");
    assert!(tasks.claims().is_empty() && next(&mut tasks, "a").is_none());
}

#[test]
fn a_task_without_ports_makes_no_claim() {
    let mut tasks = Tasks::default();
    let ticket = start(&mut tasks, "a", 5).unwrap();
    assert_eq!(tasks.answer(ticket, ports(&[])), News::default());
    assert_eq!(end(&mut tasks, "a"), News::default());
    list(&mut tasks, &[("b", 6, false)]);
    assert!(next(&mut tasks, "b").is_none(), "the listing has said that there is nothing to look up");
    assert!(tasks.claims().is_empty());
}

#[test]
fn the_answer_for_a_task_that_has_ended_is_dropped() {
    let mut tasks = Tasks::default();
    let old = start(&mut tasks, "a", 5).unwrap();
    end(&mut tasks, "a");
    assert_eq!(tasks.answer(old, ports(&[80])), News::default());
    assert!(tasks.claims().is_empty());
    // Started again meanwhile: the first answer is of the first run.
    let old = start(&mut tasks, "a", 5).unwrap();
    end(&mut tasks, "a");
    let new = start(&mut tasks, "a", 6).unwrap();
    assert_eq!(tasks.answer(old, ports(&[80])), News::default());
    assert_eq!(tasks.answer(new, ports(&[81])), claim("a", &[81]));
    // A failed one is no failure of anybody's.
    let old = start(&mut tasks, "b", 5).unwrap();
    end(&mut tasks, "b");
    assert_eq!(tasks.answer(old, failed()), News::default());
    assert!(!tasks.has_missed());
}

#[test]
fn an_update_replaces() {
    let mut tasks = known("a", 5, &[80]);
    tasks.follow(TaskEvent::Updated(c("a")));
    let ticket = next(&mut tasks, "a").unwrap();
    // Once more while that is under way: it may have come too late for it.
    tasks.follow(TaskEvent::Updated(c("a")));
    tasks.follow(TaskEvent::Updated(c("a")));
    assert!(next(&mut tasks, "a").is_none());
    assert_eq!(tasks.answer(ticket, ports(&[81])), claim("a", &[81]));
    let ticket = next(&mut tasks, "a").unwrap();
    assert_eq!(tasks.answer(ticket, ports(&[])), claim("a", &[]));
    assert!(next(&mut tasks, "a").is_none());
    // One that does not run is of no interest.
    tasks.follow(TaskEvent::Updated(c("b")));
    assert!(next(&mut tasks, "b").is_none());
}

#[test]
fn the_exit_of_an_earlier_run_ends_nothing() {
    let mut tasks = known("a", 6, &[80]);
    assert_eq!(tasks.follow(TaskEvent::Ended(c("a"), Some(5))), News::default());
    assert_eq!(tasks.claims().len(), 1);
    assert!(tasks.has_missed(), "or it is this one whose start was missed");
    assert_eq!(tasks.follow(TaskEvent::Ended(c("a"), Some(6))), claim("a", &[]));
}

#[test]
fn events_during_a_listing_know_better_than_it() {
    let mut tasks = known("a", 5, &[80]);
    tasks.begin_listing();
    end(&mut tasks, "a");
    end(&mut tasks, "unheard-of");
    start(&mut tasks, "b", 6);
    tasks.listed(c("a"), 5, true);
    tasks.listed(c("unheard-of"), 7, true);
    tasks.end_listing();
    assert!(tasks.claims().is_empty() && next(&mut tasks, "").is_none(), "what has ended is not brought back");
    assert!(tasks.tasks.contains_key(&c("b")), "what has started is not taken away");
    // Ended and started again: the listing may have seen either run.
    tasks.begin_listing();
    end(&mut tasks, "b");
    start(&mut tasks, "b", 8);
    tasks.listed(c("b"), 6, true);
    tasks.end_listing();
    assert_eq!(tasks.tasks.get(&c("b")).unwrap().pid, 8);
}

#[test]
fn a_listing_finds_what_events_have_missed() {
    let mut tasks = known("a", 5, &[80]);
    list(&mut tasks, &[("a", 6, true), ("b", 7, true)]);
    assert!(!tasks.is_listing_looked_up());
    assert_eq!(tasks.claims().len(), 1, "the old ports stay until the new ones are known");
    let (a, b) = (next(&mut tasks, "a").unwrap(), next(&mut tasks, "b").unwrap());
    tasks.answer(a, ports(&[81]));
    assert!(!tasks.is_listing_looked_up());
    tasks.answer(b, ports(&[82]));
    assert!(tasks.is_listing_looked_up());
    assert_eq!(tasks.claims().into_values().collect::<Vec<_>>(), [bindings(&[81]), bindings(&[82])]);
    list(&mut tasks, &[("b", 7, true)]);
    assert_eq!(tasks.claims().into_values().collect::<Vec<_>>(), [bindings(&[82])]);
}

#[test]
fn events_go_first() {
    let mut tasks = Tasks::default();
    list(&mut tasks, &[("a", 1, true), ("b", 2, true)]);
    tasks.follow(TaskEvent::Started(c("z"), 3));
    tasks.follow(TaskEvent::Updated(c("b")));
    for id in ["z", "b", "a"] {
        assert!(next(&mut tasks, id).is_some());
    }
}

#[test]
fn a_failed_look_up_keeps_what_was_known_and_is_tried_again() {
    let mut tasks = known("a", 5, &[80]);
    tasks.follow(TaskEvent::Updated(c("a")));
    for round in 1..=FAILURES_MAX {
        let ticket = next(&mut tasks, "a").unwrap();
        let news = tasks.answer(ticket, failed());
        assert_eq!(tasks.claims().len(), 1);
        assert_eq!(news.skipped.len(), usize::from(round == FAILURES_MAX), "said once: {news:?}");
        assert_eq!(tasks.has_missed(), round < FAILURES_MAX);
        assert!(next(&mut tasks, "a").is_none(), "not before it is listed");
        list(&mut tasks, &[("a", 5, true)]);
    }
    assert!(next(&mut tasks, "a").is_none(), "not for ever");
    tasks.follow(TaskEvent::Updated(c("a")));
    let ticket = next(&mut tasks, "a").unwrap();
    assert_eq!(tasks.answer(ticket, ports(&[81])), claim("a", &[81]));
}

#[test]
fn a_container_that_is_gone_by_its_look_up_is_no_trouble() {
    let mut tasks = Tasks::default();
    for id in ["a", "b", "c"] {
        let ticket = start(&mut tasks, id, 5).unwrap();
        assert_eq!(tasks.answer(ticket, failed()), News::default());
    }
    assert!(tasks.has_missed());
    // One ends by its event, one is not listed any more, one has no ports anyway.
    end(&mut tasks, "a");
    list(&mut tasks, &[("c", 5, false)]);
    assert!(!tasks.has_missed() && next(&mut tasks, "").is_none());
    assert_eq!(tasks.tasks.len(), 1);
}

#[test]
fn failures_count_for_one_run_and_not_while_it_changes() {
    let mut tasks = Tasks::default();
    for pid in 1..10 {
        let ticket = start(&mut tasks, "a", pid).unwrap();
        assert_eq!(tasks.answer(ticket, failed()), News::default(), "of run {pid}");
    }
    let mut ticket = start(&mut tasks, "b", 5).unwrap();
    for _ in 0..10 {
        tasks.follow(TaskEvent::Updated(c("b")));
        assert_eq!(tasks.answer(ticket, failed()), News::default());
        ticket = next(&mut tasks, "b").unwrap();
    }
    // One that is queued, and then found to be another run without any ports.
    tasks.follow(TaskEvent::Started(c("c"), 5));
    list(&mut tasks, &[("c", 6, false)]);
    assert_consistent(&tasks);
}

#[test]
fn what_cannot_be_used_is_said_and_changes_nothing() {
    let mut tasks = known("a", 5, &[80]);
    tasks.follow(TaskEvent::Updated(c("a")));
    let ticket = next(&mut tasks, "a").unwrap();
    assert_eq!(tasks.answer(ticket, Answer::Unusable("nonsense".into())).skipped, ["n/a: nonsense"]);
    assert!(!tasks.has_missed() && tasks.claims().len() == 1);
}

#[test]
fn a_new_session_looks_everything_up_again_and_forgets_nothing() {
    let mut tasks = known("a", 5, &[80]);
    let lost = start(&mut tasks, "b", 6).unwrap();
    tasks.begin_session();
    assert_eq!(tasks.answer(lost, ports(&[1])), News::default());
    assert_eq!(tasks.claims().len(), 1);
    list(&mut tasks, &[("a", 5, true), ("b", 6, true)]);
    // What is not known at all comes first, and is all that the view waits for.
    let (b, a) = (next(&mut tasks, "b").unwrap(), next(&mut tasks, "a").unwrap());
    assert!(!tasks.is_listing_looked_up());
    tasks.answer(b, ports(&[81]));
    assert!(tasks.is_listing_looked_up());
    assert_eq!(tasks.claims().len(), 2);
    tasks.answer(a, failed());
    assert_eq!(tasks.claims().len(), 2);
    tasks.begin_session();
    list(&mut tasks, &[]);
    assert!(tasks.claims().is_empty());
}

#[test]
fn there_is_a_limit() {
    let mut tasks = Tasks::default();
    let said: Vec<String> =
        (0..TASKS_MAX + 10).flat_map(|n| tasks.follow(TaskEvent::Started(c(&format!("c{n}")), 7)).skipped).collect();
    assert_eq!((tasks.tasks.len(), tasks.queue.len(), said.len()), (TASKS_MAX, TASKS_MAX, 1));
    tasks.begin_listing();
    for n in 0..TASKS_MAX * 2 {
        end(&mut tasks, &format!("d{n}"));
    }
    assert_eq!(tasks.ended.as_ref().unwrap().len(), TASKS_MAX);
    tasks.listed(c("one-of-many"), 9, true);
    assert!(tasks.has_missed() && !tasks.tasks.contains_key(&c("one-of-many")));
}

/// What is queued is what says so of itself, and nothing else.
fn assert_consistent(tasks: &Tasks) {
    let queued = tasks.tasks.iter().filter_map(|(container, task)| match task.state {
        State::Queued(urgency, ticket) => Some(((urgency, ticket), container.clone())),
        State::Stale | State::UnderWay { .. } | State::Failed | State::Settled => None,
    });
    assert_eq!(queued.collect::<Map<_, _>>(), tasks.queue);
}
