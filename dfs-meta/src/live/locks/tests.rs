use super::*;
use proptest::prelude::*;

const INO: Ino = Ino(5);
const BYTES: u64 = 24;

fn lock(kind: LockKind, session: u64, owner: u64, start: u64, end: u64) -> Lock {
    let owner = Owner { session: SessionId(session), number: owner };
    Lock { space: LockSpace::Posix, kind, owner, start, end, pid: owner.number as u32 }
}

fn kinds() -> impl Strategy<Value = LockKind> {
    prop_oneof![Just(LockKind::Unlock), Just(LockKind::Shared), Just(LockKind::Exclusive)]
}

/// A lock of one of a few owners on a few bytes, sometimes to the end of the file.
fn locks() -> impl Strategy<Value = Lock> {
    (kinds(), 1u64..3, 1u64..3, 0..BYTES, 0..BYTES, any::<bool>()).prop_map(
        |(kind, session, owner, one, other, to_end)| {
            let end = if to_end { LAST_BYTE } else { one.max(other) };
            lock(kind, session, owner, one.min(other), end)
        },
    )
}

/// What every owner holds of every byte; the last one stands for all behind it.
#[derive(Default)]
struct Model {
    bytes: Vec<HashMap<Owner, LockKind>>,
}

impl Model {
    fn new() -> Self {
        Self { bytes: (0..=BYTES).map(|_| HashMap::new()).collect() }
    }

    fn range(lock: &Lock) -> std::ops::RangeInclusive<usize> {
        lock.start as usize..=lock.end.min(BYTES) as usize
    }

    fn conflicts(&self, lock: &Lock) -> bool {
        let clash = |(owner, kind): (&Owner, &LockKind)| {
            *owner != lock.owner && (*kind == LockKind::Exclusive || lock.kind == LockKind::Exclusive)
        };
        lock.kind != LockKind::Unlock
            && self.bytes[Self::range(lock)].iter().any(|byte| byte.iter().any(clash))
    }

    fn set(&mut self, lock: &Lock) {
        for byte in &mut self.bytes[Self::range(lock)] {
            match lock.kind {
                LockKind::Unlock => byte.remove(&lock.owner),
                kind => byte.insert(lock.owner, kind),
            };
        }
    }
}

/// Checks that the table says of every byte what the model says, in as few ranges as can be.
fn compare(table: &LockTable, model: &Model) -> Result<(), TestCaseError> {
    let nothing = Ranges::default();
    let ranges = table.files.get(&INO).map_or(&nothing, |file| &file.posix);
    let all = lock(LockKind::Exclusive, 99, 99, 0, LAST_BYTE);
    let mut bytes = Model::new();
    let mut counts: HashMap<SessionId, usize> = HashMap::new();
    let held: Vec<_> = ranges.conflicts(&all).collect();
    for range in &held {
        let wire = range.to_wire(LockSpace::Posix);
        let one = lock(wire.kind(), range.owner.session.0, wire.owner, wire.start, wire.end);
        for byte in &bytes.bytes[Model::range(&one)] {
            prop_assert!(!byte.contains_key(&range.owner), "ranges of one owner overlap: {:?}", held);
        }
        bytes.set(&one);
        *counts.entry(range.owner.session).or_default() += 1;
        let touching =
            held.iter().map(|other| (other, other.to_wire(LockSpace::Posix))).any(|(other, next)| {
                other.owner == range.owner
                    && next.kind == wire.kind
                    && wire.end.checked_add(1) == Some(next.start)
            });
        prop_assert!(!touching, "neighbours are not one: {:?}", held);
    }
    prop_assert_eq!(&bytes.bytes, &model.bytes);
    for session in [1, 2].map(SessionId) {
        prop_assert_eq!(table.count(session), counts.get(&session).copied().unwrap_or(0));
    }
    prop_assert_eq!(table.files.contains_key(&INO), !held.is_empty(), "nothing is kept for nothing");
    Ok(())
}

proptest! {
    #[test]
    fn locks_are_what_they_are_on_every_byte(steps in proptest::collection::vec(locks(), 1..60)) {
        let (mut table, mut model) = (LockTable::default(), Model::new());
        for step in &steps {
            let conflict = model.conflicts(step);
            prop_assert_eq!(table.conflict(INO, step).is_some(), conflict, "{:?}", step);
            match table.set(INO, step) {
                Ok(_) => {
                    prop_assert!(!conflict);
                    model.set(step);
                }
                Err(failure) => prop_assert!(conflict && failure.code == Code::Locked, "{:?}", failure),
            }
            compare(&table, &model)?;
        }
        table.remove_session(SessionId(1));
        for byte in &mut model.bytes {
            byte.retain(|owner, _| owner.session != SessionId(1));
        }
        compare(&table, &model)?;
    }
}

#[test]
fn waiters_are_told_when_asking_again_may_help() {
    let mut table = LockTable::default();
    table.set(INO, &lock(LockKind::Exclusive, 1, 1, 0, 9)).unwrap();
    table.set(INO, &lock(LockKind::Shared, 1, 1, 20, 29)).unwrap();
    let wanted = lock(LockKind::Shared, 2, 1, 0, 0);
    assert_eq!(table.set(INO, &wanted).unwrap_err().code, Code::Locked);
    table.wait(INO, &wanted, Duration::ZERO).unwrap();
    let told = table.set(INO, &lock(LockKind::Exclusive, 1, 1, 20, 29)).unwrap();
    assert!(told.is_empty(), "an upgrade frees nothing");
    let told = table.set(INO, &lock(LockKind::Shared, 1, 1, 0, 9)).unwrap();
    assert_eq!(told, BTreeSet::from([SessionId(2)]), "a downgrade lets others share");
    table.set(INO, &wanted).unwrap();
    let exclusive = lock(LockKind::Exclusive, 1, 1, 0, 9);
    table.wait(INO, &exclusive, Duration::ZERO).unwrap();
    assert_eq!(table.remove_session(SessionId(2)), [(INO, BTreeSet::from([SessionId(1)]))]);
    assert!(table.set(INO, &exclusive).unwrap().is_empty());
    table.wait(INO, &wanted, Duration::ZERO).unwrap();
    assert_eq!(table.remove_session(SessionId(1)), [(INO, BTreeSet::from([SessionId(2)]))]);
    assert!(table.files.is_empty() && table.sessions.is_empty());
}

#[test]
fn a_circle_of_waiters_is_a_deadlock_and_who_gave_up_is_in_none() {
    let (one, other) = (Ino(1), Ino(2));
    let exclusive = |session| lock(LockKind::Exclusive, session, 7, 0, 0);
    let hold = || {
        let mut table = LockTable::default();
        table.set(one, &exclusive(1)).unwrap();
        table.set(other, &exclusive(2)).unwrap();
        table.set(INO, &exclusive(3)).unwrap();
        table.wait(other, &exclusive(1), Duration::ZERO).unwrap();
        table.wait(INO, &exclusive(2), Duration::ZERO).unwrap();
        table
    };
    assert_eq!(hold().wait(one, &exclusive(3), Duration::ZERO).unwrap_err().code, Code::Deadlock);
    assert!(hold().wait(one, &exclusive(3), WAIT_LIFETIME).is_ok(), "nobody has asked again");
    let mut table = hold();
    table.set(INO, &Lock { kind: LockKind::Unlock, ..exclusive(3) }).unwrap();
    assert!(table.wait(one, &exclusive(3), Duration::ZERO).is_ok(), "nobody waits for it any more");
}

#[test]
fn the_spaces_are_apart_and_numbers_are_bounded() {
    let mut table = LockTable::default();
    let flock = Lock { space: LockSpace::Flock, ..lock(LockKind::Exclusive, 1, 1, 0, LAST_BYTE) };
    table.set(INO, &flock).unwrap();
    table.set(INO, &lock(LockKind::Exclusive, 2, 1, 0, LAST_BYTE)).unwrap();
    let other = Lock { owner: Owner { session: SessionId(2), number: 1 }, ..flock };
    assert_eq!(table.set(INO, &other).unwrap_err().code, Code::Locked);
    let mut refused = 0;
    for at in 0..MAX_PER_INODE as u64 {
        match table.set(Ino(6), &lock(LockKind::Shared, 3, 1, at * 2, at * 2)) {
            Ok(_) => {}
            Err(failure) => {
                assert_eq!(failure.code, Code::NoLocks);
                refused += 1;
            }
        }
    }
    assert!((1..4).contains(&refused), "{refused}");
    let wire = |start, end| LockRange { start, end, ..LockRange::default() };
    assert!(Lock::parse(SessionId(1), Some(&wire(5, 4))).is_err());
    assert!(Lock::parse(SessionId(1), Some(&wire(0, LAST_BYTE + 1))).is_err());
    assert!(Lock::parse(SessionId(1), None).is_err());
    assert!(Lock::parse(SessionId(1), Some(&LockRange { kind: 9, ..wire(0, 0) })).is_err());
}
