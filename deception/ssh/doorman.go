package ssh

import (
	"container/list"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"regexp"
	"sync"
)

// Of the tries of one source, the one that is right: between these, derived from
// the source. "Any password works" is a mark of decoys, and so is one that is
// right the first time.
const (
	leastTries  = 4
	spreadTries = 5
)

// maxSources is how many sources the doorman remembers. Who is forgotten begins
// again.
const maxSources = 4096

// userPattern is a name that a machine could have: others are refused for ever.
var userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// doorman decides which login is accepted. What he accepted once is right from
// then on for that source, and everything else for that user is wrong.
type doorman struct {
	secret []byte

	mu      sync.Mutex // guards what follows
	recent  *list.List // of *visitor, the last seen in front
	sources map[netip.Addr]*list.Element
}

// visitor is what the doorman knows of one source.
type visitor struct {
	source netip.Addr
	tries  int
	user   string
	right  [sha256.Size]byte // hash of the password that was accepted
}

func newDoorman(secret []byte) *doorman {
	return &doorman{secret: secret, recent: list.New(), sources: make(map[netip.Addr]*list.Element)}
}

// admits takes one try with a password.
func (d *doorman) admits(source netip.Addr, user, password string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.visitor(source)
	v.tries++
	hash := sha256.Sum256([]byte(password))
	switch {
	case v.user != "":
		return v.user == user && v.right == hash
	case password == "" || !userPattern.MatchString(user) || v.tries < d.wanted(source):
		return false
	}
	v.user, v.right = user, hash
	return true
}

// visitor finds a source or begins to remember it.
func (d *doorman) visitor(source netip.Addr) *visitor {
	if e, ok := d.sources[source]; ok {
		d.recent.MoveToFront(e)
		return e.Value.(*visitor)
	}
	v := &visitor{source: source}
	d.sources[source] = d.recent.PushFront(v)
	if d.recent.Len() > maxSources {
		delete(d.sources, d.recent.Remove(d.recent.Back()).(*visitor).source)
	}
	return v
}

// wanted is the number of the try that is right.
func (d *doorman) wanted(source netip.Addr) int {
	mac := hmac.New(sha256.New, d.secret)
	mac.Write([]byte("tries " + source.String()))
	return leastTries + int(binary.BigEndian.Uint32(mac.Sum(nil))%spreadTries)
}
