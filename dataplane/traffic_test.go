package dataplane

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// freed opens what has a port that was open here before, in a workload. A process that
// another test starts holds all that is open in this one from its fork until it executes.
func freed[T any](t testing.TB, w *workload, open func() (T, error)) (opened T) {
	t.Helper()
	hosttest.Await(t, "a port to be free", func() bool {
		err := host.In(w.namespace, func() (err error) {
			opened, err = open()
			return err
		})
		if err != nil && !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		return err == nil
	})
	return opened
}

// echo serves TCP on a port of a workload until the test ends.
func echo(t testing.TB, w *workload, a netip.Addr, port uint16) {
	t.Helper()
	var l net.Listener
	must(t, host.In(w.namespace, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(a, port).String())
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

// dial connects from a workload.
func dial(t testing.TB, w *workload, a netip.Addr, port uint16, wait time.Duration) (net.Conn, error) {
	var c net.Conn
	err := host.In(w.namespace, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		return err
	})
	if c != nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func mustDial(t testing.TB, w *workload, a netip.Addr, port uint16) net.Conn {
	t.Helper()
	c, err := dial(t, w, a, port, long)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ping says something over a connection and hears it back.
func ping(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	var answer [4]byte
	_, err := io.ReadFull(c, answer[:])
	return err
}

const (
	short = 300 * time.Millisecond // for what must not happen
	long  = time.Minute            // for what must, on whatever machine
)

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestRootAllowAndDrop(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	echo(t, b, b.v6, 80)
	echo(t, b, b.v4, 81)
	p.run()

	// Before any ruleset everything passes.
	if err := ping(mustDial(t, a, b.v4, 81), long); err != nil {
		t.Fatal(err)
	}
	p.await("a start without a ruleset", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventStart && e.Reason == bocage.ReasonNoRuleset && e.DestinationPort == 81
	})

	rules := []bocage.Rule{{From: 21, To: 22, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 80, Last: 80}, Decision: decideAllow}}
	must(t, p.Apply(ruleset(5, rules, a, b)))
	if g := p.Generation(); g != 5 {
		t.Fatalf("generation %d in force, want 5", g)
	}
	for _, address := range []netip.Addr{b.v4, b.v6} {
		if err := ping(mustDial(t, a, address, 80), long); err != nil {
			t.Fatalf("allowed flow to %s: %v", address, err)
		}
		e := p.await("a start", func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventStart && e.DestinationPort == 80 && e.Remote == address
		})
		if e.Source != 101 || e.Destination != 102 || e.Verdict != bocage.VerdictAllow || e.Reason != bocage.ReasonRule ||
			e.Decision != decideAllow || e.Generation != 5 || e.Direction != bocage.DirectionFrom ||
			e.Interface != a.ifindex || e.Protocol != bocage.ProtocolTCP {
			t.Errorf("start event %+v", e)
		}
		if age := time.Since(e.Time); age < -time.Second || age > time.Minute {
			t.Errorf("start event is of %s, %s ago", e.Time, age)
		}
	}
	if _, err := dial(t, a, b.v4, 81, short); !isTimeout(err) {
		t.Fatalf("refused flow: %v, want a timeout", err)
	}
	e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.DestinationPort == 81 })
	if e.Source != 101 || e.Destination != 102 || e.Verdict != bocage.VerdictDrop || e.Would != bocage.VerdictDrop ||
		e.Reason != bocage.ReasonDefaultDeny || e.Decision != decideDefault || e.Remote != b.v4 {
		t.Errorf("refusal event %+v", e)
	}
	// The other way round.
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Fatalf("refused flow: %v, want a timeout", err)
	}
}
