//! Cuts a failing history down.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::history::{Setting, Step};
use super::run::{Figures, run};

/// What became of a history: figures, or the step at which it failed, and why.
pub fn outcome(setting: &Setting, steps: &[Step]) -> Result<Figures, (usize, String)> {
    let at = Cell::new(0);
    SILENT.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| run(setting, steps, |step| at.set(step))));
    SILENT.set(false);
    result.map_err(|panic| {
        let why = match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().map_or("a panic", |text| text).to_owned(),
        };
        (at.get(), why)
    })
}

/// Fewer and fewer steps, and less in each, while it still fails.
pub fn shrink(setting: &Setting, mut steps: Vec<Step>) -> Vec<Step> {
    let fails = |steps: &[Step]| outcome(setting, steps).is_err();
    let mut chunk = steps.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            if fails(&fewer) {
                steps = fewer;
                shorter = true;
            } else {
                at += chunk;
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    for i in 0..steps.len() {
        for simpler in simpler(steps[i]) {
            let mut fewer = steps.clone();
            fewer[i] = simpler;
            if fails(&fewer) {
                steps = fewer;
            }
        }
        for place in 0..u32::BITS {
            let mut fewer = steps.clone();
            match &mut fewer[i] {
                Step::Publish(_, _, places)
                | Step::PassOn(_, _, places)
                | Step::Quiet { change: (_, _, places), .. }
                    if *places >> place & 1 == 1 =>
                {
                    *places &= !(1 << place);
                }
                _ => continue,
            }
            if fails(&fewer) {
                steps = fewer;
            }
        }
    }
    steps
}

/// Steps to try in place of one.
fn simpler(step: Step) -> Vec<Step> {
    match step {
        Step::Quiet { change, gone, dead } => {
            vec![Step::Quiet { gone: 0, dead, change }, Step::Quiet { gone, dead: None, change }]
        }
        Step::Read(source, _) => vec![Step::Read(source, 1)],
        Step::Hear(source, _) => vec![Step::Hear(source, 1)],
        Step::Flow(sink, _) => vec![Step::Flow(sink, 1)],
        Step::Crash(_) => vec![Step::Crash(0)],
        _ => Vec::new(),
    }
}

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// A failing history is run many times while it is cut down: only the last panic is worth printing.
pub fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                print(info);
            }
        }));
    });
}
