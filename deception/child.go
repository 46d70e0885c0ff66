package deception

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// Pace of restarts: the pause doubles with every child that did not live long.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 10 * time.Second
	longLife   = 30 * time.Second
	// patience is how long the child may take to read an order, or to end when
	// it is told to.
	patience = 5 * time.Second
	maxSaid  = 200 // lines of one child's standard error that are logged
)

// nobody is the user and group that the child runs as: one who owns nothing.
const nobody = 65534

// keepChild runs children one after the other until ctx ends.
func (d *Decoys) keepChild(ctx context.Context) {
	pause := firstPause
	for {
		started := time.Now()
		err := d.runChild(ctx)
		d.counters.childGone()
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > longLife {
			pause = firstPause
		}
		d.counters.restarted()
		d.log.Warn("the child that serves decoys ended; starting another", slog.Any("error", err), slog.Duration("pause", pause))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

// runChild starts one child and returns when it is gone:
//
//  1. a socket for orders, which is the child's standard input;
//  2. the process, in the namespace, as nobody;
//  3. orders whenever placements change, reports as they come.
func (d *Decoys) runChild(ctx context.Context) error {
	orders, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer orders.Close()

	// The context ends the child by closing its orders; only one that does not
	// mind is killed.
	cmd := exec.CommandContext(ctx, d.cfg.Program[0], d.cfg.Program[1:]...)
	cmd.Cancel = orders.Close
	cmd.WaitDelay = patience
	cmd.Stdin = theirs
	cmd.Stdout = &lines{limit: maxReport, each: d.take}
	said := 0
	cmd.Stderr = &lines{limit: 1 << 10, each: func(line []byte) {
		if said++; said <= maxSaid { // a trace of a panic, and no more
			d.log.Warn("the child that serves decoys said something", slog.String("text", printable(string(line), 1<<10)))
		}
	}}
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=2", "GOTRACEBACK=single"}
	if own, err := os.Executable(); err == nil && cmd.Path == own {
		cmd.Path = "/proc/self/exe" // nobody may not be able to walk to it
	}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	err = host.Start(d.cfg.Namespace, cmd)
	theirs.Close()
	if err != nil {
		return err
	}

	gone := make(chan struct{})
	told := make(chan error, 1)
	go func() { told <- d.tell(orders, gone) }()
	err = cmd.Wait()
	close(gone)
	return errors.Join(err, <-told)
}

// tell gives the child the placements, and again whenever they change.
func (d *Decoys) tell(orders *net.UnixConn, gone <-chan struct{}) error {
	has := make(map[uint16]*listener) // what this child listens on
	d.notify()
	for {
		select {
		case <-gone:
			return nil
		case <-d.changed:
		}
		if err := d.tellOnce(orders, has); err != nil {
			orders.Close() // it ends, and the next one is told from the start
			return fmt.Errorf("tell the child what to serve: %w", err)
		}
	}
}

func (d *Decoys) tellOnce(orders *net.UnixConn, has map[uint16]*listener) error {
	// Under the lock, so that no listener is closed while it is handed over. The
	// child reads promptly or is dropped.
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := orders.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for port, l := range has {
		if d.listeners[port] == l {
			continue
		}
		if err := send(orders, order{Close: port}, nil); err != nil {
			return err
		}
		delete(has, port)
	}
	var all roster
	for _, p := range d.placements {
		all.Decoys = append(all.Decoys, placed{p, d.decoySecret(p.Name)})
	}
	if err := send(orders, order{Roster: &all}, nil); err != nil {
		return err
	}
	for port, l := range d.listeners {
		if has[port] != nil {
			continue
		}
		if err := send(orders, order{Listen: port, Sockets: len(l.sockets)}, l.sockets); err != nil {
			return err
		}
		has[port] = l
	}
	return nil
}

// send writes one order, with sockets attached to its first byte.
func send(orders *net.UnixConn, o order, sockets []*os.File) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	var rights []byte
	if len(sockets) > 0 {
		var fds []int
		for _, s := range sockets {
			raw, err := s.SyscallConn() // Fd would make the socket blocking, in the child too
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := orders.WriteMsgUnix(line, rights, nil)
	if err != nil {
		return err
	}
	_, err = orders.Write(line[n:])
	return err
}

// take handles one line from the child.
func (d *Decoys) take(line []byte) {
	var r report
	if err := json.Unmarshal(line, &r); err != nil {
		d.counters.lose(LostMalformed)
		return
	}
	if r.Counts != nil {
		d.counters.childCounts(*r.Counts)
	}
	if r.Engagement == nil {
		return
	}
	if err := sanitize(r.Engagement, d.placed, time.Now()); err != nil {
		d.counters.lose(LostMalformed)
		return
	}
	select {
	case d.queue <- *r.Engagement:
	default:
		d.counters.lose(LostQueue)
	}
}

func (d *Decoys) placed(decoy string) bool {
	names := d.names.Load()
	return names != nil && (*names)[decoy]
}

// socketPair makes two ends of a UNIX stream socket: ours, and one to be
// somebody's standard input.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "orders")
	file := os.NewFile(uintptr(fds[0]), "orders")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// lines is a writer that hands over whole lines, without their ends. A line
// longer than limit is dropped.
type lines struct {
	limit int
	each  func([]byte)
	part  []byte
	skip  bool // until the end of a line that is too long
}

func (l *lines) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece, p = p[:end], p[end+1:]
		} else {
			p = nil
		}
		if l.skip = l.skip || len(l.part)+len(piece) > l.limit; l.skip {
			l.part = l.part[:0]
		} else {
			l.part = append(l.part, piece...)
		}
		if end < 0 {
			continue
		}
		if !l.skip {
			l.each(l.part)
		}
		l.part, l.skip = l.part[:0], false
	}
	return written, nil
}
