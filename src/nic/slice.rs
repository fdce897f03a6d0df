//! How long a thread wants to run at a time. The scheduler shares a processor out fairly by weight; who
//! asks for short slices is let in sooner, who asks for long ones makes room for the others sooner, and
//! neither gets more or less of it. Needs no privilege; kernels before 6.12 do not listen.

use std::io;

use super::sys::check;
use crate::time::Duration;

/// What a thread asks for that moves packets: it is let in at once, and done within a fraction of this.
pub const FOR_PACKETS: Duration = Duration::from_nanos(300_000);

/// What a thread asks for that works for long at a time while packets wait for nobody: more than the
/// scheduler gives by itself (2.8 ms at the most), so that all others are let in before it; not more
/// than a tick of its clock, since who has used up its share waits for the end of such a slice.
pub const FOR_LONG_WORK: Duration = Duration::from_millis(4);

/// Asks for slices of this length for the calling thread; the kernel takes 0.1 to 100 ms. A thread
/// with a policy that has no slices, real time for one, is left as it is.
///
/// # Errors
/// The system's; the thread runs as before then.
pub fn ask_for_slices(length: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    if !matches!(
        attributes.sched_policy as i32,
        libc::SCHED_OTHER | libc::SCHED_BATCH
    ) {
        return Ok(());
    }
    attributes.sched_runtime = length.as_nanos();
    let none: libc::c_uint = 0;
    // SAFETY: the structure begins with its own size, and is only read.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, none) };
    check(result as libc::c_int).map(|_| ())
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: made of integers only.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    attributes.size = size;
    let none: libc::c_uint = 0;
    let into = &raw mut attributes;
    // SAFETY: `size` bytes may be written to, for the length of the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, into, size, none) };
    check(result as libc::c_int)?;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_policy_and_niceness() {
        let thread = std::thread::spawn(|| {
            let before = attributes().unwrap();
            ask_for_slices(Duration::from_millis(20)).unwrap();
            let after = attributes().unwrap();
            assert_eq!(before.sched_policy, after.sched_policy);
            assert_eq!(before.sched_nice, after.sched_nice);
            // Kernels since 6.12 tell what was asked for, those before say nothing.
            let told = [0, 20_000_000];
            assert!(
                told.contains(&after.sched_runtime),
                "{}",
                after.sched_runtime
            );
        });
        thread.join().unwrap();
    }
}
