package api

import (
	fifo "container/list"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// mostHalfOpen bounds the connections that have not got as far as a request:
	// past it the oldest goes, so that who only opens connections pushes out their
	// own before those of others.
	mostHalfOpen = 2048
	// moreConnections is how many there may be besides those that watch.
	moreConnections = 4096
	// filesForOthers are left to the store, the trail and the transport.
	filesForOthers = 512
)

// connections bounds those that come by network, before anybody knows whose they
// are. The local socket is root's and always open.
type connections struct {
	most, halfOpen int
	refused        func()

	mu      sync.Mutex // guards what follows
	open    map[net.Conn]*fifo.Element
	waiting fifo.List // of those without a request, the oldest first
}

func newConnections(watches int64, refused func()) *connections {
	most := int(watches) + moreConnections
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < uint64(most+filesForOthers) {
		most = max(int(files.Cur)-filesForOthers, int(files.Cur)/2)
	}
	return &connections{most: most, halfOpen: min(mostHalfOpen, most), refused: refused, open: map[net.Conn]*fifo.Element{}}
}

// changed is http.Server's ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	if conn.LocalAddr().Network() == "unix" {
		return
	}
	var gone []net.Conn
	c.mu.Lock()
	switch state {
	case http.StateNew:
		if len(c.open) >= c.most {
			gone = append(gone, conn)
		}
		c.open[conn] = c.waiting.PushBack(conn)
		if c.waiting.Len() > c.halfOpen {
			oldest := c.waiting.Front()
			c.open[oldest.Value.(net.Conn)] = nil
			gone = append(gone, c.waiting.Remove(oldest).(net.Conn))
		}
	case http.StateActive, http.StateIdle:
		if e := c.open[conn]; e != nil {
			c.waiting.Remove(e)
			c.open[conn] = nil
		}
	case http.StateClosed, http.StateHijacked:
		if e := c.open[conn]; e != nil {
			c.waiting.Remove(e)
		}
		delete(c.open, conn)
	}
	c.mu.Unlock()
	for _, conn := range gone {
		c.refused()
		// Of TLS, Close would wait to say goodbye.
		if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
			conn = secured.NetConn()
		}
		_ = conn.Close()
	}
}
