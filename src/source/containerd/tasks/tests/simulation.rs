//! Containers that start, end and change while events, listings and look-ups are on their way, at random. Once all of
//! that has come to rest, what is known and what was told must be what is true.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use super::*;

struct World {
    random: u64,
    tasks: Tasks,
    /// What runs, with its process and its port.
    truth: BTreeMap<String, (u32, u16)>,
    /// What the reconciler holds.
    told: Map<Arc<str>, Bindings>,
    /// On their way.
    events: VecDeque<TaskEvent>,
    /// With the answers that they have read.
    look_ups: Vec<(Ticket, Answer)>,
    /// What the listing under way has read.
    listing: Option<Vec<(String, u32)>>,
    snapshot_due: bool,
    pid: u32,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: seed,
            tasks: Tasks::default(),
            truth: BTreeMap::new(),
            told: Map::new(),
            events: VecDeque::new(),
            look_ups: Vec::new(),
            listing: None,
            snapshot_due: false,
            pid: 0,
        }
    }

    fn dice(&mut self, sides: usize) -> u16 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(self.random >> 48).unwrap() % u16::try_from(sides).unwrap()
    }

    /// Something happens to a container.
    fn change(&mut self) {
        let (id, port, what) = (format!("c{}", self.dice(4)), 1000 + self.dice(9), self.dice(3));
        match (what, self.truth.entry(id.clone())) {
            (0, Entry::Vacant(entry)) => {
                self.pid += 1;
                entry.insert((self.pid, port));
                self.events.push_back(TaskEvent::Started(c(&id), self.pid));
            }
            (1, Entry::Occupied(entry)) => {
                let (pid, _) = entry.remove();
                self.events.push_back(TaskEvent::Ended(c(&id), Some(pid)));
            }
            (2, Entry::Occupied(mut entry)) => {
                entry.get_mut().1 = port;
                self.events.push_back(TaskEvent::Updated(c(&id)));
            }
            _ => {}
        }
    }

    /// A look-up begins, or one ends with what it has read meanwhile: here, at its beginning.
    fn look_up(&mut self) -> News {
        let urgency = [Urgency::Event, Urgency::Listing, Urgency::Refresh][usize::from(self.dice(3))];
        if let Some((ticket, container)) = self.tasks.next_look_up(urgency) {
            let answer = self.truth.get(container.id()).map_or_else(failed, |(_, port)| ports(&[*port]));
            self.look_ups.push((ticket, answer));
        } else if !self.look_ups.is_empty() {
            let at = self.dice(self.look_ups.len());
            let (ticket, answer) = self.look_ups.swap_remove(usize::from(at));
            return self.tasks.answer(ticket, answer);
        }
        News::default()
    }

    /// A listing begins, or the one under way is taken in.
    fn list(&mut self) {
        match self.listing.take() {
            None => {
                self.tasks.begin_listing();
                self.snapshot_due = false;
                self.listing = Some(self.truth.iter().map(|(id, (pid, _))| (id.clone(), *pid)).collect());
            }
            Some(running) => {
                running.into_iter().for_each(|(id, pid)| drop(self.tasks.listed(c(&id), pid, true)));
                self.tasks.end_listing();
                self.snapshot_due = true;
            }
        }
    }

    fn step(&mut self, changes: bool) {
        let lists = changes || self.listing.is_some() || self.tasks.has_missed();
        let news = match self.dice(10) {
            0..=2 if changes => {
                self.change();
                News::default()
            }
            3..=5 => self.events.pop_front().map(|event| self.tasks.follow(event)).unwrap_or_default(),
            6..=8 => self.look_up(),
            9 if lists => {
                self.list();
                News::default()
            }
            _ => News::default(),
        };
        self.told.extend(news.claim);
        assert_consistent(&self.tasks);
        if self.snapshot_due && self.tasks.is_listing_looked_up() {
            (self.told, self.snapshot_due) = (self.tasks.claims(), false);
        }
    }
}

#[test]
fn at_rest_it_knows_what_is_true() {
    for seed in 1..=300 {
        let mut world = World::new(seed);
        (0..500).for_each(|_| world.step(true));
        (0..1500).for_each(|_| world.step(false));
        let open = (world.events.len(), world.look_ups.len(), world.listing.is_some(), world.snapshot_due);
        assert_eq!(open, (0, 0, false, false), "seed {seed}: not at rest");
        let truth = world.truth.iter().map(|(id, (_, port))| (c(id).key().clone(), bindings(&[*port])));
        let truth: Map<Arc<str>, Bindings> = truth.collect();
        assert_eq!(world.tasks.claims(), truth, "seed {seed}: known");
        world.told.retain(|_, bindings| !bindings.is_empty());
        assert_eq!(world.told, truth, "seed {seed}: told");
    }
}
