package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// TestWorkloadOfNobodysHost: a workload on a host that never joined says so, until that
// host does, and others say nothing.
func TestWorkloadOfNobodysHost(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.start()
		b.settle()
		status := func(name string) []bocage.Condition {
			t.Helper()
			return get[*bocage.Workload](b, "shop", name).Status.Conditions
		}
		c := b.condition(status("web"), bocage.ConditionDegraded, "True", "UnknownHost")
		if !strings.Contains(c.Message, "no host h1 has joined") || !strings.Contains(c.Message, "bocage agent token h1") || c.ObservedGeneration != 1 || c.LastTransitionTime.IsZero() {
			t.Errorf("%+v", c)
		}
		b.taken(1, "h1")
		b.settle()
		b.condition(status("web"), bocage.ConditionDegraded, "False", "AsPromised")
		b.condition(status("api"), bocage.ConditionDegraded, "True", "UnknownHost")
		b.declare(&bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h2"}})
		b.settle()
		b.condition(status("api"), bocage.ConditionDegraded, "True", "HostNotJoined")
		db := get[*bocage.Workload](b, "shop", "db")
		db.Spec.Host = "h1"
		b.declare(db)
		b.settle()
		if c := b.condition(status("db"), bocage.ConditionDegraded, "False", "AsPromised"); c.ObservedGeneration != 2 {
			t.Errorf("it was moved: %+v", c)
		}
		b.taken(1, "h2")
		b.settle()
		b.condition(status("api"), bocage.ConditionDegraded, "False", "AsPromised")
		// One that comes to a host that is there has nothing to say.
		cache := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "cache"},
			Spec:   bocage.WorkloadSpec{Host: "h2", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + 9}}
		b.declare(cache)
		b.settle()
		if c := status("cache"); len(c) > 0 {
			t.Errorf("%+v", c)
		}
		// The machine is taken away for good.
		b.remove(&bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h2"}})
		b.settle()
		b.condition(status("cache"), bocage.ConditionDegraded, "True", "UnknownHost")
	})
}

// TestManyWorkloadsOfNobodysHost: many are told in turns, all of them in the end.
func TestManyWorkloadsOfNobodysHost(t *testing.T) {
	inBubble(t, func(b *bench) {
		const many = 2*absentMost + 100
		for i := range many {
			b.declare(&bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("w", i)},
				Spec:   bocage.WorkloadSpec{Host: "h9", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}},
				Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}})
		}
		told := func() (n int) {
			for i := range many {
				n += len(get[*bocage.Workload](b, "shop", fmt.Sprint("w", i)).Status.Conditions)
			}
			return n
		}
		p := b.start()
		b.wait(10 * reportEvery)
		if n := told(); n == 0 || n > absentMost {
			t.Errorf("%d were told at once", n)
		}
		b.wait(5*absentEvery + time.Second)
		if n := told(); n != many {
			t.Errorf("%d of %d were told", n, many)
		}
		written := p.counters.statuses.Load()
		b.wait(5 * absentEvery)
		if again := p.counters.statuses.Load(); again != written {
			t.Errorf("%d statuses were written for nothing", again-written)
		}
	})
}
