//! Where and when the tasks run that move a connection's packets.
//!
//! quinn spawns one *driver* per connection. Three things make it cheaper than on tokio as it is:
//!
//! - It lets the tasks go first that are ready when it is woken: what several of them have to send
//!   goes out in one packet and one system call, and costs one acknowledgement.
//! - Its timer is only touched when it has to ring earlier. A connection that works sets it with
//!   every packet, nearly always to a later time.
//! - It can move to the threads of those who use the connection ([`Home::move_to`]), which saves a
//!   switch between threads each way.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The runtime of one endpoint, as quinn wants it.
#[derive(Debug)]
pub(super) struct Drivers {
    /// Where packets are worked on, whoever makes a connection.
    threads: Handle,
    /// Held while a connection is made, so that its driver can be told from others.
    making: Mutex<()>,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
enum Made {
    /// No connection is being made: a task that is spawned is the endpoint's own.
    #[default]
    Nothing,
    Awaited,
    Driver(Home),
}

/// On whose threads a driver runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Home(Arc<OnceLock<Handle>>);

impl Home {
    /// Moves the driver there when it next has something to do. It moves once.
    pub(super) fn move_to(&self, threads: &Handle) {
        let _ = self.0.set(threads.clone());
    }
}

impl Drivers {
    pub(super) fn on(threads: &Handle) -> Self {
        Self { threads: threads.clone(), making: Mutex::default(), made: Mutex::default() }
    }

    /// Runs `make`, which makes a connection if it succeeds, and tells where its driver lives.
    pub(super) fn drive<T>(&self, make: impl FnOnce() -> T) -> (T, Home) {
        let _making = self.making.lock();
        *self.made.lock() = Made::Awaited;
        let result = make();
        match std::mem::take(&mut *self.made.lock()) {
            Made::Driver(home) => (result, home),
            Made::Nothing | Made::Awaited => (result, Home::default()),
        }
    }
}

#[expect(clippy::disallowed_types, reason = "quinn's interface; tokio's clock is behind it")]
impl Runtime for Drivers {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn AsyncTimer>> {
        let due = Instant::from_std(at);
        let _entered = self.threads.enter();
        Box::pin(Alarm { sleep: Box::pin(tokio::time::sleep_until(due)), due })
    }

    fn spawn(&self, task: Task) {
        let mut made = self.made.lock();
        if matches!(*made, Made::Nothing) {
            drop(self.threads.spawn(task));
            return;
        }
        let home = Home::default();
        *made = Made::Driver(home.clone());
        drop(self.threads.spawn(Driver { task: Some(task), home, is_due: false }));
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.threads.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> std::time::Instant {
        TokioRuntime.now()
    }
}

/// A timer that is set anew only to ring earlier: when it has rung too early, it waits for the rest.
#[derive(Debug)]
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    due: Instant,
}

#[expect(clippy::disallowed_types, reason = "quinn's interface; tokio's clock is behind it")]
impl AsyncTimer for Alarm {
    fn reset(mut self: Pin<&mut Self>, at: std::time::Instant) {
        self.due = Instant::from_std(at);
        let due = self.due;
        if due < self.sleep.deadline() {
            Sleep::reset(self.sleep.as_mut(), due);
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Future::poll(self.sleep.as_mut(), cx));
            let due = self.due;
            if self.sleep.deadline() >= due {
                return Poll::Ready(());
            }
            Sleep::reset(self.sleep.as_mut(), due);
        }
    }
}

/// quinn's driver of a connection, woken: first it goes to the end of the queue, then it runs.
struct Driver {
    /// `None` once it has moved.
    task: Option<Task>,
    home: Home,
    is_due: bool,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_due {
            self.is_due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_due = false;
        if let Some(threads) = self.home.0.get().cloned() {
            let (task, home) = (self.task.take(), Home::default());
            // quinn owns its drivers: they end with their connections.
            threads.spawn(Self { task, home, is_due: true });
            return Poll::Ready(());
        }
        self.task.as_mut().map_or(Poll::Ready(()), |task| task.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    async fn rung(alarm: &mut Pin<Box<dyn AsyncTimer>>) -> Duration {
        let start = Instant::now();
        std::future::poll_fn(|cx| alarm.as_mut().poll(cx)).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_the_last_time_it_was_set_to() {
        let second = Duration::from_secs(1);
        let at = |seconds: u32| (Instant::now() + second * seconds).into_std();
        let mut alarm = Drivers::on(&Handle::current()).new_timer(at(2));
        assert_eq!(rung(&mut alarm).await, second * 2, "as made");
        alarm.as_mut().reset(at(3));
        alarm.as_mut().reset(at(5));
        assert_eq!(rung(&mut alarm).await, second * 5, "later");
        alarm.as_mut().reset(at(5));
        alarm.as_mut().reset(at(1));
        assert_eq!(rung(&mut alarm).await, second, "earlier");
        alarm.as_mut().reset(at(4));
        alarm.as_mut().reset(at(1));
        alarm.as_mut().reset(at(6));
        assert_eq!(rung(&mut alarm).await, second * 6, "earlier, then later");
    }

    #[test]
    fn only_what_is_made_as_a_connection_waits_for_others_and_moves() {
        let elsewhere =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let here = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let drivers = Drivers::on(here.handle());
        let others = Arc::new(AtomicUsize::new(0));
        let (told, mut seen) = tokio::sync::mpsc::channel(8);
        here.block_on(async {
            let count = Arc::clone(&others);
            let ((), home) = drivers.drive(|| {
                drivers.spawn(Box::pin(std::future::poll_fn(move |cx| {
                    let before = count.load(Ordering::Relaxed);
                    let _ = told.try_send((before, Handle::current().id(), cx.waker().clone()));
                    Poll::Pending
                })));
            });
            let ready = async move { others.fetch_add(1, Ordering::Relaxed) };
            let ready = Handle::current().spawn(ready);
            let (before, place, waker) = seen.recv().await.unwrap();
            assert_eq!((before, place), (1, here.handle().id()), "what was ready went first");
            ready.await.unwrap();
            home.move_to(elsewhere.handle());
            waker.wake();
            let (_, place, _) = seen.recv().await.unwrap();
            assert_eq!(place, elsewhere.handle().id());
            let (ended, end) = tokio::sync::oneshot::channel();
            drivers.spawn(Box::pin(async move {
                let _ = ended.send(Handle::current().id());
            }));
            assert_eq!(end.await.unwrap(), here.handle().id(), "the endpoint's own stays");
        });
    }
}
