package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Cluster says how to reach an etcd that somebody else runs.
type Cluster struct {
	// Endpoints are addresses such as https://10.0.0.1:2379, or unix:///path.
	Endpoints []string
	// TLS proves this client's name and verifies the servers'; without it names
	// and data travel in the open.
	TLS *tls.Config
	// Patience is how long it has for an answer (0: 15 s, which is longer than it takes
	// to find a new leader, and less than people wait for a controller).
	Patience time.Duration
	// Prefix of all keys (empty: [DefaultPrefix]).
	Prefix string
	Logger *slog.Logger
}

const (
	dialPatience = 5 * time.Second
	keepAlive    = 10 * time.Second

	answerPatience = 15 * time.Second
)

// Connect uses an etcd cluster that runs elsewhere. It returns an error if none
// of the endpoints answers before ctx ends, or within five seconds.
func Connect(ctx context.Context, c Cluster) (*Store, error) {
	if len(c.Endpoints) == 0 {
		return nil, errors.New("connect to etcd: there are no endpoints")
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(c.Prefix, "/") {
		c.Prefix += "/" // a site's keys are no other's whose prefix begins alike
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: c.TLS,
		DialTimeout: dialPatience, DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: dialPatience,
		MaxCallSendMsgSize: maxRequest, // the cluster has its own limit
		Logger:             newZap(c.Logger, func(string) {}),
		DialOptions:        []grpc.DialOption{grpc.WithDisableServiceConfig()},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %v: %w", c.Endpoints, err)
	}
	s := newStore(client, c.Prefix, nil, func() error {
		if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	s.patience, s.history = cmp.Or(c.Patience, answerPatience), newHistory()
	s.members = &members{logger: c.Logger}
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	if _, err := client.Get(ctx, c.Prefix, clientv3.WithCountOnly()); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to etcd at %v: %w", c.Endpoints, err), s.Close())
	}
	s.lookAtMembers(ctx)
	s.begin(s.watchMembers)
	return s, nil
}

func isCompacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }
