package jetstream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
)

const (
	dialPatience = 5 * time.Second
	// Between two attempts to connect there is at least the first and at most the
	// last wait, half of it by chance, so that a thousand agents do not come at once.
	waitFirst, waitMost = 100 * time.Millisecond, 15 * time.Second
)

// ConnConfig says how an agent reaches a controller. Addresses are needed, and
// either SVID and Bundle or JoinToken.
type ConnConfig struct {
	// Addresses are host:port of one or several controllers.
	Addresses []string
	// SVID returns the agent's current identity.
	SVID func() *identity.SVID
	// Bundle is by whom the controller's identity is verified.
	Bundle *identity.Bundle
	// JoinToken stands for both where there is none yet; all that the connection
	// may do then is to ask on the subject join, for a short while.
	JoinToken string
	// Changed, if set, is told when the connection comes (true) and goes. It must
	// not block. What was notified meanwhile is lost: ask.
	Changed func(connected bool)
	Logger  *slog.Logger
}

// Conn is an agent's one connection. It comes back by itself for ever.
type Conn struct {
	exchange *exchange
	nats     *nats.Conn
}

// Connect returns once there is a connection; until then it tries again until ctx
// ends. It gives up at once where trying is useless: if the controller refuses
// the agent (stream.ErrDenied) or is not who it should be (identity.ErrUntrusted).
func Connect(ctx context.Context, config ConnConfig) (*Conn, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	options, err := config.options()
	if err != nil {
		return nil, fmt.Errorf("connect to controller: %w", err)
	}
	x := newExchange(config.Logger, nil)
	x.changed = config.Changed
	options = append(options, x.options()...)
	for attempt := 1; ; attempt++ {
		x.conn, err = dial(ctx, config.Addresses, options)
		if err == nil {
			return &Conn{exchange: x, nats: x.conn}, nil
		}
		if errors.Is(err, stream.ErrDenied) || errors.Is(err, identity.ErrUntrusted) {
			return nil, fmt.Errorf("connect to controller at %v: %w", config.Addresses, err)
		}
		config.Logger.Info("controller not reached", "addresses", config.Addresses, "attempt", attempt, "error", err)
		timer := time.NewTimer(backoff(attempt))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("connect to controller at %v: %w: %w", config.Addresses, err, ctx.Err())
		case <-timer.C:
		}
	}
}

func (c ConnConfig) options() ([]nats.Option, error) {
	if len(c.Addresses) == 0 {
		return nil, errors.New("there are no addresses")
	}
	options := []nats.Option{
		nats.TLSHandshakeFirst(), nats.Timeout(dialPatience), nats.IgnoreDiscoveredServers(),
		nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), // a revocation may be lifted
		nats.CustomReconnectDelay(backoff),
	}
	if c.JoinToken != "" {
		config, err := identity.JoinTLS(c.JoinToken)
		if err != nil {
			return nil, err
		}
		nonce := rand.Text()
		return append(options, nats.Secure(config), nats.UserInfo(nonce, ""), nats.CustomInboxPrefix(joinInbox(nonce))), nil
	}
	if c.SVID == nil || c.SVID() == nil || c.Bundle == nil {
		return nil, errors.New("there is neither an identity with trust anchors nor a join token")
	}
	id := c.SVID().ID()
	inbox, err := inboxOf(id)
	if err != nil {
		return nil, err
	}
	return append(options, nats.Secure(identity.ClientTLS(c.SVID, c.Bundle, "/controller/")), nats.Name(id), nats.CustomInboxPrefix(inbox)), nil
}

// dial tries every address once.
func dial(ctx context.Context, addresses []string, options []nats.Option) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	urls := make([]string, len(addresses))
	for i, address := range addresses {
		urls[i] = "tls://" + address
	}
	conn, err := nats.Connect(strings.Join(urls, ","), options...)
	var refused tls.AlertError
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.As(err, &refused),
		strings.Contains(err.Error(), "remote error: tls"): // the server did not like our certificate
		return nil, fmt.Errorf("%w: %w", stream.ErrDenied, err)
	}
	return nil, fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
}

// backoff is how long to wait after an attempt: twice as long each time, and half
// of it by chance.
func backoff(attempt int) time.Duration {
	wait := min(waitFirst<<min(attempt, 16), waitMost)
	return wait/2 + mathrand.N(wait/2)
}

// Exchange returns the agent's end of all exchanges.
func (c *Conn) Exchange() stream.Exchange { return c.exchange }

// Connected says whether there is a connection now.
func (c *Conn) Connected() bool { return c.nats.IsConnected() }

// Address is the controller's that it is connected to; empty if it is to none.
func (c *Conn) Address() string { return c.nats.ConnectedAddr() }

// Leave gives up the connection, if there is one, for one to the next of the addresses.
// What waits for an answer fails with stream.ErrUnavailable.
func (c *Conn) Leave() error {
	if err := c.nats.ForceReconnect(); err != nil {
		return fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
	}
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.nats.Close()
	return nil
}

// Log returns the agent's end of a log: it may append to its own subject, and
// neither read nor look. Which log it is follows from the subject.
func (c *Conn) Log(name string) stream.Log { return &remoteLog{c.exchange, name} }

type remoteLog struct {
	exchange *exchange
	name     string
}

// Append implements stream.Log. Without a deadline in ctx it waits 10 seconds.
func (l *remoteLog) Append(ctx context.Context, subject, id string, data []byte) (uint64, error) {
	if err := checkID(id); err != nil {
		return 0, fmt.Errorf("append to %s: %w", subject, err)
	}
	message := nats.NewMsg(subject)
	message.Header.Set(headerID, id)
	reply, err := l.exchange.ask(ctx, message, data)
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w", subject, err)
	}
	sequence, err := strconv.ParseUint(reply.Header.Get(headerSequence), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w: no log takes it", subject, stream.ErrUnavailable)
	}
	return sequence, nil
}

// Read implements stream.Log: agents may not.
func (l *remoteLog) Read(context.Context, uint64, func(stream.Message) error) error {
	return fmt.Errorf("read log %s: %w: agents only append", l.name, stream.ErrDenied)
}

// Bounds implements stream.Log: agents may not.
func (l *remoteLog) Bounds(context.Context) (first, last uint64, err error) {
	return 0, 0, fmt.Errorf("look at log %s: %w: agents only append", l.name, stream.ErrDenied)
}
