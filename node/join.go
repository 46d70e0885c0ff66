package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
)

// Lifetimes. An agent renews at half of its life, so it may be away from every
// controller for that long before somebody has to admit it anew.
const (
	agentLife      = 24 * time.Hour
	controllerLife = 24 * time.Hour
	signerLife     = 5 * 365 * 24 * time.Hour
)

// Subjects of the exchanges between agents and controllers; "*" is the host.
const (
	subjectJoin     = "join"
	subjectRuleset  = "agent.%s.ruleset"
	subjectPiece    = "agent.%s.piece"
	subjectStatus   = "agent.%s.status"
	subjectRenew    = "agent.%s.renew"
	subjectRevision = "ruleset.revision"
)

type joinRequest struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"` // PKCS#10, DER
}

type joinAnswer struct {
	Chain  []byte `json:"chain"`
	Bundle []byte `json:"bundle"`
}

// credentials keeps an agent's key, certificate and trust bundle.
type credentials struct {
	dir    string
	svid   *identity.SVID
	bundle *identity.Bundle
}

func loadCredentials(dir, trustDomain string) (*credentials, error) {
	svid, err := identity.LoadSVID(dir)
	if err != nil {
		return nil, err
	}
	bundle, err := identity.LoadBundle(dir, trustDomain)
	if err != nil {
		return nil, err
	}
	return &credentials{dir: dir, svid: svid, bundle: bundle}, nil
}

// obtainCredentials loads what the agent has, or joins with its token if that is
// nothing or has expired, trying until ctx ends.
func obtainCredentials(ctx context.Context, cfg Config) (*credentials, error) {
	dir := cfg.agentDir("identity")
	have, err := loadCredentials(dir, cfg.TrustDomain)
	switch {
	case err == nil && (time.Now().Before(have.svid.Expires()) || cfg.JoinToken == ""):
		return have, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case cfg.JoinToken == "":
		return nil, fmt.Errorf("host %s has not joined yet: make a token with `bocage agent token %s` on a controller and pass its file with --join", cfg.Host, cfg.Host)
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		joined, err := join(ctx, cfg, dir)
		if err == nil {
			return joined, nil
		}
		if !errors.Is(err, stream.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		cfg.Logger.Warn("joining waits for a controller", "controllers", cfg.Controllers, "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func join(ctx context.Context, cfg Config, dir string) (*credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	token := strings.TrimSpace(cfg.JoinToken)
	conn, err := jetstream.Connect(ctx, jetstream.ConnConfig{Addresses: cfg.Controllers, JoinToken: token, Logger: cfg.Logger})
	if err != nil {
		return nil, fmt.Errorf("connect to join: %w", err)
	}
	defer conn.Close()
	key, csr, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	question, err := json.Marshal(joinRequest{Token: token, CSR: csr})
	if err != nil {
		return nil, err
	}
	reply, err := conn.Exchange().Ask(ctx, subjectJoin, question)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	var answer joinAnswer
	if err := json.Unmarshal(reply, &answer); err != nil {
		return nil, fmt.Errorf("join: answer of the controller: %w", err)
	}
	svid, err := identity.NewSVID(key, answer.Chain)
	if err != nil {
		return nil, fmt.Errorf("join: certificate: %w", err)
	}
	bundle, err := identity.ParseBundle(cfg.TrustDomain, answer.Bundle)
	if err != nil {
		return nil, fmt.Errorf("join: trust bundle: %w", err)
	}
	if _, path, err := identity.ParseID(svid.ID()); err != nil || path != "/agent/"+cfg.Host {
		return nil, fmt.Errorf("the join token was made for %s and this host is %s", svid.ID(), cfg.Host)
	}
	if err := svid.Save(dir); err != nil {
		return nil, err
	}
	if err := identity.SaveBundle(dir, bundle); err != nil {
		return nil, err
	}
	return &credentials{dir: dir, svid: svid, bundle: bundle}, nil
}

// serveJoin admits agents: a token's secret buys one certificate for the path
// that the token was made for.
func serveJoin(ctx context.Context, exchange stream.Exchange, authority *identity.Authority, tokens *identity.Tokens, logger *slog.Logger) error {
	return exchange.Serve(ctx, subjectJoin, func(ctx context.Context, request stream.Request) ([]byte, error) {
		var question joinRequest
		if err := json.Unmarshal(request.Data, &question); err != nil {
			return nil, errors.New("the request is no join request")
		}
		// Checked first: a token is used up even if what follows fails.
		if request, err := x509.ParseCertificateRequest(question.CSR); err != nil || request.CheckSignature() != nil {
			return nil, errors.New("the certificate request is damaged; the token is still good")
		}
		path, err := tokens.Redeem(ctx, question.Token)
		if err != nil {
			logger.Warn("join refused", "error", err)
			return nil, err
		}
		chain, err := authority.Issue(path, question.CSR, agentLife)
		if err != nil {
			return nil, err
		}
		logger.Info("agent joined", "path", path)
		return json.Marshal(joinAnswer{Chain: chain, Bundle: authority.Bundle().MarshalPEM()})
	})
}
