package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/time/rate"

	"bocage.dev/bocage"
)

// OIDC says which provider's tokens are accepted as bearer tokens (OpenID
// Connect ID tokens). They say who somebody is; what they may do, only
// RoleBindings say.
type OIDC struct {
	// Issuer is the provider's URL, exactly as its tokens have it.
	Issuer string
	// ClientID must be in a token's audience.
	ClientID string
	// CAFile holds the certificates that the provider's may be signed by; empty
	// is the system's.
	CAFile string
	// UsernameClaim holds the person's name; empty is email. A token without it is
	// refused: if another claim took its place, a client that leaves it out would make
	// two people of one.
	UsernameClaim string
	// GroupsClaim holds one group or several; empty is groups.
	GroupsClaim string
	// RequiredClaims must have these values.
	RequiredClaims map[string]string
}

func (o OIDC) validate() bocage.Faults {
	var faults bocage.Faults
	issuer, err := url.Parse(o.Issuer)
	switch {
	case err != nil || issuer.Host == "" || issuer.RawQuery != "" || issuer.Fragment != "":
		faults.Add("Issuer", "%q is not the URL of a provider", o.Issuer)
	case issuer.Scheme != "https" && !(issuer.Scheme == "http" && loopback(issuer.Hostname())):
		faults.Add("Issuer", "%q does not begin with https://: whoever is between could make everybody anybody", o.Issuer)
	}
	if o.ClientID == "" {
		faults.Add("ClientID", "is missing: tokens that were made for others would be accepted")
	}
	return faults
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

const (
	// oidcRefresh is how often the provider's keys are read anew, so that one that
	// was withdrawn is not accepted for longer.
	oidcRefresh = 10 * time.Minute
	oidcRetry   = 5 * time.Second
	oidcTimeout = 10 * time.Second
	// oidcFetches bounds how often strangers' tokens can make the keys be asked
	// for, which is once for each unknown one.
	oidcFetches    = 20
	oidcAnswer     = 1 << 20
	longestToken   = 16 << 10
	longestName    = 253
	mostGroups     = 500
	expiryLeeway   = 10 * time.Second // of a token that has just ended
	beginsLeeway   = time.Minute      // of a provider whose clock is ahead
	defaultGroups  = "groups"
	emailClaim     = "email"
	emailVerified  = "email_verified"
	signOnDisabled = "signed tokens are not accepted: this controller knows no provider (see --oidc-issuer)"
)

// singleSignOn accepts tokens of one provider. The provider need not be there
// when the controller starts, nor stay: its keys are kept, and read again in the
// background.
type singleSignOn struct {
	config OIDC
	logger *slog.Logger
	client *http.Client

	mu       sync.Mutex // guards what follows
	verifier *oidc.IDTokenVerifier
	fault    error // why the provider's keys are not known, or not fresh
}

func newSingleSignOn(config OIDC, logger *slog.Logger) (*singleSignOn, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: oidcTimeout, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if config.CAFile != "" {
		pem, err := os.ReadFile(config.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificates for single sign-on: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the certificates for single sign-on: %s holds none in PEM", config.CAFile)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	if config.GroupsClaim == "" {
		config.GroupsClaim = defaultGroups
	}
	return &singleSignOn{
		config: config, logger: logger, fault: errors.New("it has not been asked yet"),
		client: &http.Client{
			Timeout:   oidcTimeout,
			Transport: &boundedFetches{transport, rate.NewLimiter(rate.Every(oidcRefresh/oidcFetches), oidcFetches)},
		},
	}, nil
}

// boundedFetches keeps the provider from being asked too often, and its answers
// from being too large.
type boundedFetches struct {
	inner   http.RoundTripper
	limiter *rate.Limiter
}

func (b *boundedFetches) RoundTrip(r *http.Request) (*http.Response, error) {
	if !b.limiter.Allow() {
		return nil, errors.New("it was asked too often already: wait a moment")
	}
	answer, err := b.inner.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, oidcAnswer), answer.Body}
	}
	return answer, err
}

// run keeps the provider's keys until ctx ends.
func (o *singleSignOn) run(ctx context.Context) {
	for {
		wait := oidcRefresh
		if err := o.refresh(ctx); err != nil {
			wait = oidcRetry
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (o *singleSignOn) refresh(ctx context.Context) error {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, o.client), o.config.Issuer)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil && (o.fault == nil || o.fault.Error() != err.Error()):
		o.logger.Warn("single sign-on: reach the provider", "issuer", o.config.Issuer, "error", err)
	case err == nil && o.fault != nil:
		o.logger.Info("single sign-on: the provider is there", "issuer", o.config.Issuer)
	}
	o.fault = err
	if err != nil {
		return err
	}
	o.verifier = provider.Verifier(&oidc.Config{
		ClientID: o.config.ClientID,
		// Never "none", and never a secret that the provider shares with somebody,
		// whatever it says that it supports.
		SupportedSigningAlgs: []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA},
		SkipExpiryCheck:      true, // checked with the leeway that clocks need
	})
	return nil
}

// health says what is wrong with the provider; nil if nothing is.
func (o *singleSignOn) health() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fault == nil {
		return nil
	}
	what := "its people cannot log in"
	if o.verifier != nil {
		what = "the keys that were read before are still accepted"
	}
	return fmt.Errorf("the provider %s cannot be asked, and %s: %w", o.config.Issuer, what, o.fault)
}

// signedOn finds out who a provider's token names.
func (s *Server) signedOn(ctx context.Context, token string) (Person, error) {
	if s.signOn == nil {
		return Person{}, unauthorized(signOnDisabled)
	}
	p, err := s.signOn.person(ctx, token, s.config.Now())
	if err != nil {
		return Person{}, unauthorized("the token is not accepted: %v", err)
	}
	return p, nil
}

func (o *singleSignOn) person(ctx context.Context, token string, now time.Time) (Person, error) {
	if len(token) > longestToken {
		return Person{}, fmt.Errorf("it has %d bytes: at most %d are read", len(token), longestToken)
	}
	o.mu.Lock()
	verifier := o.verifier
	o.mu.Unlock()
	if verifier == nil {
		return Person{}, o.health()
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, o.client), oidcTimeout)
	defer cancel()
	checked, err := verifier.Verify(ctx, token)
	if err != nil {
		return Person{}, err
	}
	claims := map[string]json.RawMessage{}
	if err := checked.Claims(&claims); err != nil {
		return Person{}, fmt.Errorf("its claims cannot be read: %w", err)
	}
	if err := inTime(claims, now); err != nil {
		return Person{}, err
	}
	for _, claim := range slices.Sorted(maps.Keys(o.config.RequiredClaims)) {
		if got, _ := textOf(claims[claim]); got != o.config.RequiredClaims[claim] {
			return Person{}, fmt.Errorf("its claim %s is not %q, which this controller asks for", claim, o.config.RequiredClaims[claim])
		}
	}
	name, err := o.nameIn(claims)
	if err != nil {
		return Person{}, err
	}
	groups, err := o.groupsIn(claims)
	return Person{Name: name, Groups: groups}, err
}

// inTime checks exp, nbf and iat with the leeway that clocks need.
func inTime(claims map[string]json.RawMessage, now time.Time) error {
	at := func(claim string) (time.Time, bool, error) {
		var seconds float64
		raw, ok := claims[claim]
		if !ok || string(raw) == "null" {
			return time.Time{}, false, nil
		}
		if err := json.Unmarshal(raw, &seconds); err != nil || seconds < 0 || seconds > 1<<40 {
			return time.Time{}, true, fmt.Errorf("its claim %s is no time", claim)
		}
		return time.Unix(int64(seconds), 0), true, nil
	}
	expires, ok, err := at("exp")
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("it never expires")
	case !now.Before(expires.Add(expiryLeeway)):
		return fmt.Errorf("it expired at %s: log in again", expires.UTC().Format(time.RFC3339))
	}
	for _, claim := range []string{"nbf", "iat"} {
		begins, ok, err := at(claim)
		if err != nil {
			return err
		}
		if ok && begins.After(now.Add(beginsLeeway)) {
			return fmt.Errorf("it begins at %s, and here it is %s: compare the clocks", begins.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// textOf reads a claim that is a text, a number or true or false.
func textOf(raw json.RawMessage) (string, bool) {
	var text string
	if json.Unmarshal(raw, &text) == nil && string(raw) != "null" {
		return text, true
	}
	switch {
	case len(raw) == 0, raw[0] == '{', raw[0] == '[', string(raw) == "null":
		return "", false
	}
	return string(raw), true
}

// nameIn finds the person's name. One that this controller gives itself, or that
// a certificate could bear, is nobody's at a provider.
func (o *singleSignOn) nameIn(claims map[string]json.RawMessage) (string, error) {
	claim := cmp.Or(o.config.UsernameClaim, emailClaim)
	name, ok := textOf(claims[claim])
	if !ok || name == "" {
		return "", fmt.Errorf("its claim %s, which names the person, is missing: ask the provider for the scope that gives it, or have the controller go by another claim (--oidc-username-claim sub)", claim)
	}
	if verified, given := textOf(claims[emailVerified]); claim == emailClaim && given && verified != "true" {
		return "", errors.New("its e-mail address is not verified by the provider")
	}
	if ownName(name) || strings.HasPrefix(name, bocage.GroupSubject) || strings.HasPrefix(name, "spiffe:") {
		return "", fmt.Errorf("its claim %s is %q: names that begin so are not a provider's to give", claim, name)
	}
	return name, printable(claim, name)
}

func printable(claim, text string) error {
	if len(text) > longestName || strings.TrimSpace(text) != text || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("its claim %s holds %.100q: names have at most %d printable characters", claim, text, longestName)
	}
	return nil
}

func (o *singleSignOn) groupsIn(claims map[string]json.RawMessage) ([]string, error) {
	raw, ok := claims[o.config.GroupsClaim]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	var groups []string
	if one, ok := textOf(raw); ok {
		groups = []string{one}
	} else if err := json.Unmarshal(raw, &groups); err != nil {
		return nil, fmt.Errorf("its claim %s is neither a text nor a list of texts", o.config.GroupsClaim)
	}
	if len(groups) > mostGroups {
		return nil, fmt.Errorf("it names %d groups: at most %d are read", len(groups), mostGroups)
	}
	for _, group := range groups {
		if group == "" {
			return nil, fmt.Errorf("its claim %s names a group without a name", o.config.GroupsClaim)
		}
		if err := printable(o.config.GroupsClaim, group); err != nil {
			return nil, err
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups), nil
}
