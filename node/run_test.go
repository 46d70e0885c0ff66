package node

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage/inspection/suricata"
)

// systemd waits for no agent that has to be admitted first; who asked for the greeting
// does, and gets none where the agent ended instead.
func TestAnnounce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "")
	for name, c := range map[string]struct {
		patience     time.Duration
		stands, ends bool // before systemd is to be told
		told         bool
	}{
		"stands at once":       {time.Hour, true, false, true},
		"waits":                {time.Nanosecond, false, false, true},
		"ends before it could": {time.Hour, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			group, standing := new(errgroup.Group), make(chan struct{})
			if c.stands {
				close(standing)
			}
			if c.ends {
				cancel()
			}
			greeted, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				announce(ctx, group, Config{Logger: slog.New(slog.DiscardHandler)}, standing, c.patience, func() { close(greeted) })
			}()
			if c.told {
				b := make([]byte, 100)
				must(t, socket.SetReadDeadline(time.Now().Add(time.Minute)))
				if n, err := socket.Read(b); err != nil || string(b[:n]) != "READY=1" {
					t.Errorf("told %q, %v", b[:n], err)
				}
			}
			if c.told && !c.stands {
				select {
				case <-greeted:
					t.Error("it greets before it stands")
				default:
				}
				close(standing)
			}
			<-done
			cancel()
			_ = group.Wait() // it beats until then
			select {
			case <-greeted:
				if c.ends {
					t.Error("it greets and has ended")
				}
			default:
				if !c.ends {
					t.Error("it does not greet")
				}
			}
		})
	}
}

// That frames are too long to be inspected is said as long as it is so.
func TestNoteFrames(t *testing.T) {
	a := &agentProcess{}
	for _, mtu := range []int{1500, suricata.MaxMTU + 1, suricata.MaxMTU, suricata.MaxMTU + 1, 1500} {
		if a.noteFrames(mtu); a.faults.has("inspection-mtu") != (mtu > suricata.MaxMTU) {
			t.Errorf("%d bytes: %q", mtu, a.faults.String())
		}
	}
}
