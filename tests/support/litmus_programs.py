"""Programs for the litmus tests: for each rule, one that relies on it and one that breaks it.

A comment before each group names its section in the chapter "Memory Consistency Model" of the PTX
ISA.
"""

from tests.support.litmus import poll

DATA, READ = "st.global.b32 [%rd0], 7;", "ld.global.b32 %r5, [%rd0]; st.global.b32 [%rd10], %r5;"
ONE = "mov.b32 %r3, 1; mov.b32 %r6, 0;"


def st(order="release.gpu", at="%rd1", value="%r3"):
    return f"{ONE} st.{order}.global.b32 [{at}], {value};"


def ld(order="acquire.gpu", at="%rd1", to="%r4"):
    return f"ld.{order}.global.b32 {to}, [{at}];"


def fence(kind="acq_rel.gpu"):
    return f"fence.{kind};"


def message(send, receive, *between, **options):
    """T0 sends its data, the last thread reads it."""
    return (DATA + send, *between, receive + READ), options


RELAXED = {"order": "relaxed.gpu"}
F2 = "%rd1+64"


def passed_on(second):
    """T0 to T1 by one flag, T1 to T2 by another."""
    return message(st(), poll(ld(at=F2)), poll(ld()) + second)


def chain(link, **options):
    """Two threads add to a counter, the second without a release."""
    second = f"\nFIRST@:\n{ld('relaxed.gpu')} setp.eq.s32 %p1, %r4, 0; @%p1 bra FIRST@;{link}"
    release = "atom.release.gpu.global.add.u32 %r8, [%rd1], 1;"
    return message(release, poll(ld(), 2), second, **options)


def buffering(order, one_cta=False, store=None, load=None):
    """Each thread announces itself, and enters if the other has not: at most one may enter."""

    def thread(mine, other):
        write = store.replace("?", mine) if store else st("relaxed.gpu", mine)
        enter = f"setp.ne.s32 %p1, %r4, 0; @%p1 bra DONE; {DATA}"
        look = load.replace("?", other) if load else ld("relaxed.gpu", other)
        return f"{write}{order}{look}{enter}"

    return (thread("%rd1", F2), thread(F2, "%rd1")), {"one_cta": one_cta}


def independent_reads(order):
    """Two writes, and two readers that see them in different orders."""

    def reader(first, second):
        return poll(ld("relaxed.gpu", first)) + (
            f"{order}{ld('relaxed.gpu', second)} setp.ne.s32 %p1, %r4, 0; @%p1 bra DONE; {DATA}"
        )

    return (
        st("relaxed.gpu"),
        st("relaxed.gpu", F2),
        reader("%rd1", F2),
        reader(F2, "%rd1"),
    ), {}


def in_order(write_order, read_order, second=F2):
    """Two writes by one thread. A thread that sees only the second one writes the data."""
    value = "mov.b32 %r3, 2;" if second == "%rd1" else ""
    limit = 2 if second == "%rd1" else 1
    return (
        f"{DATA}{st('relaxed.gpu')}{write_order}{value}st.relaxed.gpu.global.b32 [{second}], %r3;",
        poll(ld("relaxed.gpu", second), limit) + f"{read_order}{ld('relaxed.gpu')}"
        f"setp.ge.s32 %p1, %r4, {limit}; @%p1 bra DONE; {DATA}",
    ), {}


def lock(take="acquire.gpu", leave="release.gpu", after="", before="", one_cta=False, scope="gpu"):
    """A lock by compare-and-swap, and two critical sections."""
    thread = (
        f"{ONE}\nWAIT@:\natom.{take}.global.cas.b32 %r4, [%rd1], 0, 1;"
        f"setp.ne.s32 %p0, %r4, 0; @%p0 bra WAIT@;{after}"
        "ld.global.b32 %r5, [%rd0]; add.s32 %r5, %r5, 1; st.global.b32 [%rd0], %r5;"
        f"{before}atom.{leave}.global.exch.b32 %r7, [%rd1], 0;"
    )
    return (thread, thread), {"one_cta": one_cta}


def ticket(turn="acquire.gpu", leave="release.gpu"):
    thread = (
        "atom.relaxed.gpu.global.add.u32 %r6, [%rd1], 1;"
        f"\nWAIT@:\n{ld(turn, F2)} setp.ne.s32 %p0, %r4, %r6; @%p0 bra WAIT@;"
        "ld.global.b32 %r5, [%rd0]; add.s32 %r5, %r5, 1; st.global.b32 [%rd0], %r5;"
        f"red.{leave}.global.add.u32 [{F2}], 1;"
    )
    return (thread,) * 3, {}


def each(text, one_cta=False, count=2):
    return (text,) * count, {"one_cta": one_cta}


def reduction_as_read(opcode):
    """T1 sees by another flag, which orders nothing, that the counter was increased."""
    target = "" if opcode == "red" else "%r8, "
    observe = f"{opcode}.relaxed.gpu.global.add.u32 {target}[%rd1], 1;"
    send = f"atom.release.gpu.global.add.u32 %r8, [%rd1], 1; {st('relaxed.gpu', F2)}"
    return message(send, poll(ld("relaxed.gpu", F2)) + observe + fence())


SHARED = "st.shared.b32 [0], 7;"
READ_SHARED = "ld.shared.b32 %r5, [0]; st.global.b32 [%rd10], %r5;"


def through_shared(send, receive):
    first = "setp.eq.s32 %p8, %r0, 0; @%p8"  # one lane
    start = "st.relaxed.cta.shared.b32 [8], 0; bar.sync 0;"
    send = f"{first} {SHARED} {first} {send}"
    return (start + send, "bar.sync 0;" + receive + READ_SHARED), {"one_cta": True}


# name: (correct, racy)
PAIRS = {
    # 8.8 Release and acquire patterns
    "release and acquire": (message(st(), poll(ld())), message(st("relaxed.gpu"), poll(ld()))),
    "acquire": (message(st(), poll(ld())), message(st(), poll(ld("relaxed.gpu")))),
    "fence before a strong write": (
        message(fence() + st("relaxed.gpu"), poll(ld())),
        message(st("relaxed.gpu") + fence(), poll(ld())),
    ),
    "fence after a strong read": (
        message(st(), poll(ld("relaxed.gpu")) + fence()),
        message(st(), fence() + poll(ld("relaxed.gpu"))),
    ),
    "one-sided fences": (
        message(
            fence("release.gpu") + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + fence("acquire.gpu")
        ),
        message(
            fence("acquire.gpu") + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + fence("release.gpu")
        ),
    ),
    "a weak flag": (
        message(fence() + st("relaxed.gpu"), poll(ld())),
        message(fence() + f"{ONE} st.global.b32 [%rd1], %r3;", poll(ld())),
    ),
    "release and a later relaxed store of the thread": (
        message(st() + "st.relaxed.gpu.global.b32 [%rd1], 2;", poll(ld(), 2)),
        message(
            st(), poll(ld(), 2), poll(ld("relaxed.gpu")) + "st.relaxed.gpu.global.b32 [%rd1], 2;"
        ),
    ),
    "what stands after the release": (
        (st(at=F2) + DATA + st(), poll(ld()) + READ),
        (st() + DATA, poll(ld()) + READ),
    ),
    "relaxed read and a later acquire": (
        message(st(), poll(ld("relaxed.gpu")) + ld()),
        message(st(), poll(ld("relaxed.gpu")) + ld(at=F2)),
    ),
    "a reduction begins no acquire pattern": (reduction_as_read("atom"), reduction_as_read("red")),
    "acq_rel": (
        message(
            "atom.acq_rel.gpu.global.exch.b32 %r8, [%rd1], 1;",
            poll("atom.acq_rel.gpu.global.add.u32 %r4, [%rd1], 0;"),
        ),
        message(
            "atom.acquire.gpu.global.exch.b32 %r8, [%rd1], 1;",
            poll("atom.acq_rel.gpu.global.add.u32 %r4, [%rd1], 0;"),
        ),
    ),
    "an atomic polls": (
        message(st(), poll("atom.acquire.gpu.global.max.u32 %r4, [%rd1], 0;")),
        message(st(), poll("atom.release.gpu.global.max.u32 %r4, [%rd1], 0;")),
    ),
    "a compare-and-swap that fails releases nothing": (
        message("atom.release.gpu.global.cas.b32 %r8, [%rd1], 0, 1;", poll(ld())),
        (
            DATA
            + poll(ld("relaxed.gpu"))
            + "atom.release.gpu.global.cas.b32 %r8, [%rd1], 0, 1;"
            + st("relaxed.gpu", F2),
            st("relaxed.gpu"),
            poll(ld("relaxed.gpu", F2)) + ld() + READ,
        ),
    ),
    "volatile is relaxed": (
        message(
            f"membar.gl; {ONE} st.volatile.global.b32 [%rd1], %r3;",
            poll("ld.volatile.global.b32 %r4, [%rd1];") + "membar.gl;",
        ),
        message(
            f"{ONE} st.volatile.global.b32 [%rd1], %r3;",
            poll("ld.volatile.global.b32 %r4, [%rd1];"),
        ),
    ),
    # 8.7 Morally strong: scopes, on each side and each kind of operation
    "scope of the release": (
        message(st("release.cta"), poll(ld()), one_cta=True),
        message(st("release.cta"), poll(ld())),
    ),
    "scope of the acquire": (
        message(st(), poll(ld("acquire.cta")), one_cta=True),
        message(st(), poll(ld("acquire.cta"))),
    ),
    "scope of the writer's fence": (
        message(fence("acq_rel.cta") + st("relaxed.gpu"), poll(ld()), one_cta=True),
        message(fence("acq_rel.cta") + st("relaxed.gpu"), poll(ld())),
    ),
    "scope of the reader's fence": (
        message(st(), poll(ld("relaxed.gpu")) + fence("acq_rel.cta"), one_cta=True),
        message(st(), poll(ld("relaxed.gpu")) + fence("acq_rel.cta")),
    ),
    "a wider fence after a narrow one": (
        message(
            fence() + fence("acq_rel.cta") + st("relaxed.gpu"),
            poll(ld("relaxed.gpu")) + fence("acq_rel.cta") + fence(),
        ),
        message(
            fence("acq_rel.cta") + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + fence("acq_rel.cta")
        ),
    ),
    "membar.cta": (
        message("membar.gl;" + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + "membar.sys;"),
        message("membar.gl;" + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + "membar.cta;"),
    ),
    "scope of the relaxed flag": (
        message(fence() + st("relaxed.cta"), poll(ld()), one_cta=True),
        message(fence() + st("relaxed.cta"), poll(ld())),
    ),
    "scope of an atomic that polls": (
        message(
            "atom.release.cta.global.exch.b32 %r8, [%rd1], 1;",
            poll("atom.acquire.cta.global.cas.b32 %r4, [%rd1], 1, 1;"),
            one_cta=True,
        ),
        message(
            "atom.release.cta.global.exch.b32 %r8, [%rd1], 1;",
            poll("atom.acquire.cta.global.cas.b32 %r4, [%rd1], 1, 1;"),
        ),
    ),
    "cluster is the CTA": (
        message(st("release.cluster"), poll(ld("acquire.cluster")), one_cta=True),
        message(st("release.cluster"), poll(ld("acquire.cluster"))),
    ),
    "sys and gpu include each other": (
        message(st("release.sys"), poll(ld())),
        message(st("release.sys"), poll(ld("relaxed.gpu"))),
    ),
    # 8.7.1 Conflict and data-races
    "relaxed atomics of the CTA": (
        each("atom.relaxed.cta.global.add.u32 %r4, [%rd1], 1;", one_cta=True),
        each("atom.relaxed.cta.global.add.u32 %r4, [%rd1], 1;"),
    ),
    "exchanges of the CTA": (
        each("atom.relaxed.gpu.global.exch.b32 %r4, [%rd1], %r1;"),
        each("atom.relaxed.cta.global.exch.b32 %r4, [%rd1], %r1;"),
    ),
    "reductions of the CTA": (
        each("red.relaxed.gpu.global.add.u32 [%rd1], 1;"),
        each("red.relaxed.cta.global.add.u32 [%rd1], 1;"),
    ),
    "one atomic of the CTA": (
        (
            (
                "atom.relaxed.gpu.global.add.u32 %r4, [%rd1], 1;",
                "atom.relaxed.cta.global.add.u32 %r4, [%rd1], 1;",
            ),
            {"one_cta": True},
        ),
        (
            (
                "atom.relaxed.gpu.global.add.u32 %r4, [%rd1], 1;",
                "atom.relaxed.cta.global.add.u32 %r4, [%rd1], 1;",
            ),
            {},
        ),
    ),
    "relaxed stores of the CTA": (
        each("st.relaxed.cta.global.b32 [%rd1], %r0;", one_cta=True),
        each("st.relaxed.cta.global.b32 [%rd1], %r1;"),
    ),
    "relaxed loads of the CTA": (
        (st("relaxed.gpu"), ld("relaxed.gpu")),
        (st("relaxed.gpu"), ld("relaxed.cta")),
    ),
    "sizes": (
        each("atom.relaxed.gpu.global.add.u64 %rd11, [%rd1], 1;"),
        (
            "atom.relaxed.gpu.global.add.u64 %rd11, [%rd1], 1;",
            "atom.relaxed.gpu.global.add.u32 %r4, [%rd1], 1;",
        ),
    ),
    "strong and weak": (
        (st("relaxed.gpu"), st("relaxed.gpu", value="%r6")),
        (st("relaxed.gpu"), f"{ONE} st.global.b32 [%rd1], %r6;"),
    ),
    # 8.9.2 Observation order
    "a chain of atomics": (
        chain("atom.relaxed.gpu.global.add.u32 %r8, [%rd1], 1;"),
        chain("mov.b32 %r8, 2; st.relaxed.gpu.global.b32 [%rd1], %r8;"),
    ),
    "a chain through a reduction": (
        chain("red.relaxed.gpu.global.add.u32 [%rd1], 1;"),
        chain("red.relaxed.cta.global.add.u32 [%rd1], 1;"),
    ),
    "a chain through an exchange": (
        chain("atom.relaxed.gpu.global.exch.b32 %r8, [%rd1], 2;"),
        chain("atom.relaxed.cta.global.exch.b32 %r8, [%rd1], 2;"),
    ),
    # 8.9.5 Causality order
    "cumulativity": (passed_on(st(at=F2)), passed_on(st("relaxed.gpu", F2))),
    "cumulativity by fences": (
        message(
            fence() + st("relaxed.gpu"),
            poll(ld("relaxed.gpu", F2)) + fence(),
            poll(ld("relaxed.gpu")) + fence() + st("relaxed.gpu", F2),
        ),
        message(
            fence() + st("relaxed.gpu"),
            poll(ld("relaxed.gpu", F2)) + fence(),
            poll(ld("relaxed.gpu")) + fence("acq_rel.cta") + st("relaxed.gpu", F2),
        ),
    ),
    "an observed write precedes what follows": (
        (st("relaxed.gpu"), poll(ld("relaxed.gpu")) + "st.global.b32 [%rd1], 2;"),
        (st("relaxed.gpu"), "st.global.b32 [%rd1], 2;"),
    ),
    "an observed write, but not those before": (
        (st("relaxed.gpu"), poll(ld("relaxed.gpu")) + "ld.global.b32 %r5, [%rd1];"),
        (
            st("relaxed.gpu", F2) + st("relaxed.gpu"),
            poll(ld("relaxed.gpu")) + f"st.global.b32 [{F2}], 2;",
        ),
    ),
    # 8.9.3 Fence-SC order
    "store buffering": (buffering("fence.sc.gpu;"), buffering("fence.acq_rel.gpu;")),
    "store buffering without a fence": (buffering("membar.gl;"), buffering("")),
    "store buffering, scope": (
        buffering("fence.sc.cta;", one_cta=True),
        buffering("fence.sc.cta;"),
    ),
    "store buffering after an exchange": (
        buffering("fence.sc.gpu;", store="atom.relaxed.gpu.global.exch.b32 %r8, [?], 1;"),
        buffering("", store="atom.acq_rel.gpu.global.exch.b32 %r8, [?], 1;"),
    ),
    "store buffering with atomics": (  # with acq_rel one observes the other
        buffering(
            "",
            store="atom.acq_rel.gpu.global.exch.b32 %r8, [?], 1;",
            load="atom.acq_rel.gpu.global.add.u32 %r4, [?], 0;",
        ),
        buffering(
            "",
            store="atom.relaxed.gpu.global.exch.b32 %r8, [?], 1;",
            load="atom.relaxed.gpu.global.add.u32 %r4, [?], 0;",
        ),
    ),
    "store buffering, a compare-and-swap as load": (
        buffering("fence.sc.gpu;", load="atom.relaxed.gpu.global.cas.b32 %r4, [?], 0, 0;"),
        buffering("", load="atom.relaxed.gpu.global.cas.b32 %r4, [?], 0, 0;"),
    ),
    "store buffering, an atomic that writes": (
        buffering("fence.sc.gpu;", load="atom.relaxed.gpu.global.or.b32 %r4, [?], 0;"),
        buffering("fence.sc.cta;", load="atom.relaxed.gpu.global.or.b32 %r4, [?], 0;"),
    ),
    "independent reads": (
        independent_reads("fence.sc.gpu;"),
        independent_reads("fence.acq_rel.gpu;"),
    ),
    "order of fence.sc is no order of plain accesses": (
        message("fence.sc.gpu;" + st("relaxed.gpu"), poll(ld("relaxed.gpu")) + "fence.sc.gpu;"),
        message("fence.sc.gpu;", "fence.sc.gpu;"),
    ),
    # 8.10 Axioms: SC per location, causality
    "coherence": (in_order("", "", "%rd1"), in_order("", "")),
    "stores in order": (in_order(fence(), fence()), in_order(fence(), "")),
    "loads in order": (in_order(fence(), fence()), in_order("", fence())),
    # Locks
    "lock": (lock(), lock(leave="relaxed.gpu")),
    "lock without an acquire": (lock(), lock(take="relaxed.gpu")),
    "lock with fences": (
        lock("relaxed.gpu", "relaxed.gpu", "fence.acq_rel.gpu;", "fence.acq_rel.gpu;"),
        lock("relaxed.gpu", "relaxed.gpu", "fence.acq_rel.cta;", "fence.acq_rel.gpu;"),
    ),
    "lock with one fence": (
        lock("relaxed.gpu", "relaxed.gpu", "membar.gl;", "membar.gl;"),
        lock("relaxed.gpu", "relaxed.gpu", "membar.gl;", ""),
    ),
    "lock of the CTA": (
        lock("acquire.cta", "release.cta", one_cta=True),
        lock("acquire.cta", "release.cta"),
    ),
    "ticket lock": (ticket(), ticket(turn="relaxed.gpu")),
    "ticket lock, release": (ticket(), ticket(leave="relaxed.gpu")),
    # 8.9.4 Memory synchronization: barriers
    "bar.sync": (
        ((DATA + "bar.sync 0;", "bar.sync 0;" + READ), {"one_cta": True}),
        (("bar.sync 0;" + DATA, "bar.sync 0;" + READ), {"one_cta": True}),
    ),
    "bar.sync of two CTAs": (
        ((DATA + "bar.sync 0;", "bar.sync 0;" + READ), {"one_cta": True}),
        ((DATA + "bar.sync 0;", "bar.sync 0;" + READ), {}),
    ),
    "shared memory": (
        ((SHARED + "bar.sync 0;", "bar.sync 0;" + READ_SHARED), {"one_cta": True}),
        ((SHARED + "bar.sync 0;", READ_SHARED + "bar.sync 0;"), {"one_cta": True}),
    ),
    "a named barrier of some warps": (
        (
            (DATA + "bar.sync 1, 64;", "bar.sync 1, 64;" + READ, "bar.sync 2, 32;"),
            {"one_cta": True},
        ),
        (
            (DATA + "bar.sync 1, 64;", "bar.sync 2, 32;" + READ, "bar.sync 1, 64;"),
            {"one_cta": True},
        ),
    ),
    "bar.arrive": (
        ((DATA + "bar.arrive 1, 64;", "bar.sync 1, 64;" + READ), {"one_cta": True}),
        (("bar.arrive 1, 64;" + READ, DATA + "bar.sync 1, 64;"), {"one_cta": True}),
    ),
    "a barrier passes on what was acquired": (
        (
            (
                DATA + st() + "bar.sync 1, 32;",
                poll(ld()) + "bar.sync 2, 64;",
                "bar.sync 2, 64;" + READ,
            ),
            {"one_cta": True},
        ),
        (
            (DATA + st(), poll(ld()) + "bar.sync 1, 32;", "bar.sync 2, 32;" + READ),
            {"one_cta": True},
        ),
    ),
    "a flag in shared memory": (
        through_shared(
            "st.release.cta.shared.b32 [8], 1;", poll("ld.acquire.cta.shared.b32 %r4, [8];")
        ),
        through_shared(
            "st.release.cta.shared.b32 [8], 1;", poll("ld.relaxed.cta.shared.b32 %r4, [8];")
        ),
    ),
    # 8.1: the model does not hold for ld.global.nc
    "ld.global.nc": (
        message(st(), poll(ld()) + "ld.global.nc.b32 %r7, [%rd0+8];"),
        message(st(), poll(ld()) + "ld.global.nc.b32 %r7, [%rd0];"),
    ),
    "ld.global.nc, then a write": (
        ("ld.global.nc.b32 %r7, [%rd0+8];" + st(), poll(ld()) + DATA),
        ("ld.global.nc.b32 %r7, [%rd0];" + st(), poll(ld()) + DATA),
    ),
}
