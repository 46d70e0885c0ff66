// Package ssh is a decoy that speaks SSH as the OpenSSH that it claims to be.
//
// The transport is our own, the server's side only, because libraries are told
// from OpenSSH by one packet: here the identification exchange, the algorithms
// and their order, the answers to malformed packets, the messages on
// disconnection and the refusals of logins are those of sshd, compared with a
// real one (testdata). Primitives come from the standard
// library and x/crypto; only what neither has (UMAC, the server's half of
// sntrup761) is written here.
//
// It promises that a session is bounded in time, memory and packets whatever
// the client sends, that it tells every step of the client, and that host keys
// depend on nothing but the decoy's secret and the address: the same address
// shows the same keys, on every connection and after a restart. A login is
// recorded and refused, until a source has guessed often enough (see doorman);
// who is let in meets the shell of deception/shell. It never dials, never opens
// a file and never executes anything.
package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// DefaultBanner is the identification of a decoy whose placement gives none:
// Debian 12 as of 2025.
const DefaultBanner = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"

// Refusal is what sshd says to a connection that it has no room for.
const Refusal = "Exceeded MaxStartups\r\n"

// Bounds of one connection.
const (
	firstByteTime = 10 * time.Second // until the client says anything
	graceTime     = 30 * time.Second // LoginGraceTime: until it is done
	maxAuthTries  = 6                // MaxAuthTries of sshd_config
	maxPacket     = 64 << 10         // bytes; OpenSSH takes 256 kB
	maxPackets    = 4096             // from one client, of any kind
	maxSessionful = 1 << 17          // packets of one who got in
	maxWorkers    = 2                // handshakes that compute at a time
)

// maxBanner is the most characters of an identification: RFC 4253 section 4.2
// allows 255 with CR and LF.
const maxBanner = 253

// Config describes one decoy.
type Config struct {
	// Banner is the identification without its CR LF, "SSH-2.0-" included (it is
	// added where it is missing); "" is DefaultBanner.
	Banner string
	// Secret is what host keys are derived from.
	Secret []byte
}

// Server is one decoy.
type Server struct {
	banner  string
	profile profile
	keys    *keyring
	doorman *doorman
	boot    time.Time     // of the machine that we pretend to be
	work    chan struct{} // a token for each handshake that computes
	derive  chan struct{} // one for the host key that is derived: an RSA key takes half a second
	delay   time.Duration // of a wrong password, about
}

// New makes a decoy, or tells what is wrong with its banner.
func New(cfg Config) (*Server, error) {
	banner := cfg.Banner
	if banner == "" {
		banner = DefaultBanner
	}
	if !strings.HasPrefix(banner, "SSH-") {
		banner = "SSH-2.0-" + banner
	}
	switch {
	case len(banner) > maxBanner:
		return nil, fmt.Errorf("banner %.32q… has %d characters: RFC 4253 section 4.2 allows %d", banner, len(banner), maxBanner)
	case !strings.HasPrefix(banner, "SSH-2.0-") && !strings.HasPrefix(banner, "SSH-1.99-"):
		return nil, fmt.Errorf("banner %q claims a protocol that is not SSH 2.0", banner)
	case strings.ContainsFunc(banner, func(r rune) bool { return r < ' ' || r > '~' }):
		return nil, fmt.Errorf("banner %q has characters that are not printable ASCII (RFC 4253 section 4.2)", banner)
	}
	return &Server{
		banner: banner, profile: profileOf(banner),
		keys: newKeyring(cfg.Secret), doorman: newDoorman(cfg.Secret), boot: bootOf(cfg.Secret, time.Now()),
		work: make(chan struct{}, maxWorkers), derive: make(chan struct{}, 1), delay: passwordDelay,
	}, nil
}

// session is one connection.
type session struct {
	server *Server
	conn   net.Conn
	wire   *wire
	report func(bocage.Depth, map[string]string)
	victim netip.Addr // whose address we wear
	source netip.Addr // who is there

	clientID string
	hassh    string
	probed   bool

	id     []byte // H of the first key exchange
	strict bool
	suite  suite
}

// Serve talks with one client until it is gone, refused or out of time, and
// reports what it does, from several goroutines. It returns soon after ctx ends if the caller then closes
// the connection.
func (s *Server) Serve(ctx context.Context, conn net.Conn, report func(bocage.Depth, map[string]string)) {
	c := &session{server: s, conn: conn, report: report, victim: addressOf(conn.LocalAddr()), source: addressOf(conn.RemoteAddr())}
	defer c.reportProbe()

	start := time.Now()
	conn.SetDeadline(start.Add(graceTime))
	conn.SetReadDeadline(start.Add(firstByteTime))
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetNoDelay(false) // sshd sets it for sessions only, and it shows when we close
	}
	c.wire = newWire(conn, func() { conn.SetReadDeadline(start.Add(graceTime)) })

	err := c.converse(ctx)
	if goodbye, ok := errors.AsType[disconnect](err); ok {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		c.wire.write(goodbye.message())
		c.wire.w.Flush()
	}
}

// converse is the protocol from its beginning: identification, key exchange,
// logins until the client gives up, and whatever one who got in does.
func (c *session) converse(ctx context.Context) error {
	if err := c.identify(); err != nil {
		return err
	}
	if err := c.exchangeKeys(ctx, nil); err != nil {
		return err
	}
	user, err := c.authenticate(ctx)
	if err != nil {
		return err
	}
	return c.serveChannels(ctx, user)
}

// reportProbe tells once what the client said about itself, if anything.
func (c *session) reportProbe() {
	if c.probed || c.clientID == "" {
		return
	}
	c.probed = true
	detail := map[string]string{"client": c.clientID}
	if c.hassh != "" {
		detail["hassh"] = c.hassh
	}
	c.report(bocage.DepthProbe, detail)
}

// bootOf is when the machine was started: weeks ago, and the same moment for as
// long as it can be.
func bootOf(secret []byte, now time.Time) time.Time {
	const period = 90 * 24 * time.Hour
	sum := sha256.Sum256(append([]byte("boot"), secret...))
	offset := time.Duration(binary.BigEndian.Uint32(sum[:])) * time.Second % period
	return now.Add(-offset).Truncate(period).Add(offset)
}

func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.IPv4Unspecified()
}
