//! The clocks of the host as values of `mesh-core`.
//!
//! [`Clock`] reads CLOCK_BOOTTIME, which is monotonic and counts time asleep, so a session that slept too long is
//! found to be too old. [`Timer`] waits on the same clock: a deadline that passed while the host slept fires at
//! once when it wakes.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use tokio::io::Interest;

use mesh_core::{
    node::HostEvent,
    time::{Instant, WallAnchor, WallTime},
};

use crate::watched::{Watched, watch};

/// A difference between two clocks below this is their drift, not a sleep or a step.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// Reads the host's clocks and notices when it slept or its calendar was stepped.
#[derive(Debug)]
pub struct Clock {
    /// It is the clock of a simulation instead, which never sleeps.
    #[cfg(feature = "turmoil")]
    is_simulated: bool,
    /// Boot time less monotonic time: what the host has slept since it started.
    asleep: Duration,
    anchor: WallAnchor,
}

impl Clock {
    /// A clock that takes sleep and calendar from now on as the base for [`Self::observe`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            #[cfg(feature = "turmoil")]
            is_simulated: false,
            asleep: asleep(),
            anchor: anchor(),
        }
    }

    /// The clock of the simulation that the caller runs in.
    #[cfg(feature = "turmoil")]
    #[must_use]
    pub fn simulated() -> Self {
        let elapsed = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
        let wall = WallTime::from_unix_nanos(SIMULATED_EPOCH.as_unix_nanos().saturating_add(elapsed));
        let anchor = WallAnchor { at: simulated_now(), wall };
        Self { is_simulated: true, asleep: Duration::ZERO, anchor }
    }

    /// Nanoseconds since the host started, sleep included.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        #[cfg(feature = "turmoil")]
        if self.is_simulated {
            return simulated_now();
        }
        Instant::from_nanos(read(libc::CLOCK_BOOTTIME))
    }

    /// The pair of monotonic clock and calendar that was seen last.
    #[must_use]
    pub fn anchor(&self) -> WallAnchor {
        self.anchor
    }

    /// What happened to the clocks since the last call: the host slept, or the calendar was stepped. Cheap enough for
    /// every wake-up.
    pub fn observe(&mut self) -> [Option<HostEvent>; 2] {
        #[cfg(feature = "turmoil")]
        if self.is_simulated {
            return [None, None];
        }
        let asleep = asleep();
        let slept = asleep.saturating_sub(self.asleep);
        let resumed = (slept >= NOTICEABLE).then(|| {
            self.asleep = asleep;
            HostEvent::Resumed { slept, entropy: crate::entropy::seed().ok() }
        });
        let anchor = anchor();
        let expected = self.anchor.wall_at(anchor.at).as_unix_nanos();
        let stepped = Duration::from_nanos(anchor.wall.as_unix_nanos().abs_diff(expected)) >= NOTICEABLE;
        let stepped = stepped.then(|| {
            self.anchor = anchor;
            HostEvent::ClockStepped(anchor)
        });
        [resumed, stepped]
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// When simulations begin: 2027-01-15.
#[cfg(feature = "turmoil")]
const SIMULATED_EPOCH: WallTime = WallTime::from_unix_secs(1_800_000_000);

/// The time of the simulation that the caller runs in; it does not begin at zero, which some take for "never".
#[cfg(feature = "turmoil")]
fn simulated_now() -> Instant {
    Instant::from_secs(1) + turmoil::sim_elapsed().unwrap_or_default()
}

fn asleep() -> Duration {
    Duration::from_nanos(read(libc::CLOCK_BOOTTIME).saturating_sub(read(libc::CLOCK_MONOTONIC)))
}

fn anchor() -> WallAnchor {
    WallAnchor {
        at: Instant::from_nanos(read(libc::CLOCK_BOOTTIME)),
        wall: WallTime::from_unix_nanos(read(libc::CLOCK_REALTIME)),
    }
}

/// Nanoseconds on one of the kernel's clocks; 0 for times before its epoch.
#[expect(unsafe_code, reason = "std offers neither CLOCK_BOOTTIME nor CLOCK_MONOTONIC as a number")]
#[inline]
fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to; the three clocks exist since Linux 2.6.39, and an unknown one
    // would leave `time` at zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Wakes a task at a point in time on the clock of [`Clock`].
#[derive(Debug)]
pub struct Timer {
    /// `None` where time is simulated.
    fd: Option<Watched<OwnedFd>>,
    armed: Option<Instant>,
}

impl Timer {
    /// A timer that is not set. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: Some(watch(timerfd()?, Interest::READABLE)?), armed: None })
    }

    /// A timer on the clock of the simulation that the caller runs in.
    #[cfg(feature = "turmoil")]
    #[must_use]
    pub fn simulated() -> Self {
        Self { fd: None, armed: None }
    }

    /// Waits until `deadline`, or for ever. Setting the deadline that is set already costs nothing.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not for valid times.
    pub async fn sleep_until(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let Some(fd) = &self.fd else {
            #[cfg(feature = "turmoil")]
            if let Some(deadline) = deadline {
                tokio::time::sleep(deadline.since(simulated_now())).await;
                return Ok(());
            }
            return core::future::pending().await;
        };
        if self.armed != deadline {
            arm(fd, deadline)?;
            self.armed = deadline;
        }
        loop {
            let mut ready = fd.readable().await?;
            match ready.try_io(|fd| read_count(&fd.get_ref().0)) {
                // Fired; it is not armed any longer, and the next call will set it anew.
                Ok(fired) => {
                    fired?;
                    self.armed = None;
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "std has no timers that count sleep")]
fn timerfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the timer to an absolute time; `None` disarms it.
#[expect(unsafe_code, reason = "std has no timers that count sleep")]
fn arm(fd: &Watched<OwnedFd>, deadline: Option<Instant>) -> io::Result<()> {
    // All zeros disarms, so a deadline at the epoch becomes its first nanosecond.
    let nanos = deadline.map_or(0, |at| at.as_nanos().max(1));
    let value = libc::timespec {
        tv_sec: libc::time_t::try_from(nanos / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(nanos % 1_000_000_000).unwrap_or(0),
    };
    let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // SAFETY: `fd` is open, `spec` is a valid itimerspec to read from, and the old value is not asked for.
    let result = unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const spec, core::ptr::null_mut())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads the count of a timer that fired.
#[expect(unsafe_code, reason = "std reads only from its own file types")]
fn read_count(fd: &OwnedFd) -> io::Result<u64> {
    let mut count = 0_u64;
    // SAFETY: `count` is 8 bytes to write to, and a timer's read is of exactly 8 bytes.
    let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_nothing_is_noticed() {
        let mut clock = Clock::new();
        let before = clock.now();
        assert!(before > Instant::ZERO);
        assert!(clock.now() >= before);
        assert!(clock.observe().iter().all(Option::is_none));
    }

    #[test]
    fn a_stepped_calendar_is_reported_once() {
        let mut clock = Clock::new();
        clock.anchor.wall = WallTime::from_unix_secs(1);
        assert!(matches!(clock.observe(), [None, Some(HostEvent::ClockStepped(_))]));
        assert!(clock.observe().iter().all(Option::is_none));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_timer_fires_after_its_deadline_and_can_be_set_again() {
        let clock = Clock::new();
        let mut timer = Timer::new().unwrap();
        for _ in 0..2 {
            let deadline = clock.now() + Duration::from_millis(5);
            timer.sleep_until(Some(deadline)).await.unwrap();
            assert!(clock.now() >= deadline);
        }
        // In the past: at once.
        timer.sleep_until(Some(Instant::ZERO)).await.unwrap();
    }
}
