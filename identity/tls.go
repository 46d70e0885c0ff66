package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ServerTLS is the configuration of a server that shows its SVID and verifies its
// clients' if they have one: ask [Peer] who it is. svid is called for every
// connection, so that renewal needs no restart. Besides its chain the server
// shows the trust anchors, by whose hash a joining agent knows it.
func ServerTLS(svid func() *SVID, b *Bundle) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s := svid()
			if s == nil {
				return nil, errors.New("this server has no identity yet")
			}
			certificate := s.Certificate()
			certificate.Certificate = append(certificate.Certificate, b.raw()...)
			return &certificate, nil
		},
		// Go's own verification knows nothing of SPIFFE; VerifyConnection does it.
		ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := b.Verify(state.PeerCertificates, b.Now())
			return err
		},
		// A resumed session would outlive a revocation.
		SessionTicketsDisabled: true,
	}
}

// ClientTLS is the configuration of a client that shows its SVID, if svid returns
// one, and accepts only a server whose SPIFFE id has the given path. A path that
// ends with "/", such as /controller/, accepts every id below it.
func ClientTLS(svid func() *SVID, b *Bundle, serverPath string) *tls.Config {
	return clientTLS(svid, func(chain []*x509.Certificate) error {
		id, err := b.Verify(chain, b.Now())
		if err != nil {
			return err
		}
		return checkServer(id, serverPath)
	})
}

// JoinTLS is the configuration of a client that has nothing but a join token: it
// accepts only a controller whose trust anchor the token names.
func JoinTLS(token string) (*tls.Config, error) {
	_, pin, err := splitToken(token)
	if err != nil {
		return nil, err
	}
	return clientTLS(func() *SVID { return nil }, func(chain []*x509.Certificate) error {
		return verifyPinned(chain, pin)
	}), nil
}

func clientTLS(svid func() *SVID, verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s := svid()
			if s == nil {
				return new(tls.Certificate), nil
			}
			certificate := s.Certificate()
			return &certificate, nil
		},
		// Names are SPIFFE ids and not host names, so Go's verification is replaced
		// by VerifyConnection, which also runs when a session is resumed.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verify(state.PeerCertificates)
		},
	}
}

func checkServer(id, want string) error {
	_, path, err := ParseID(id)
	if err != nil {
		return err
	}
	if path == want || strings.HasSuffix(want, "/") && strings.HasPrefix(path, want) {
		return nil
	}
	return fmt.Errorf("verify server: %w: it is %s, not %s", ErrUntrusted, id, want)
}

// verifyPinned takes the shown anchor that has the pin as the only one.
func verifyPinned(chain []*x509.Certificate, pin string) error {
	for _, anchor := range chain {
		if pinOf(anchor) != pin || len(anchor.URIs) != 1 {
			continue
		}
		b, err := NewBundle(anchor.URIs[0].Host, anchor)
		if err != nil {
			return fmt.Errorf("verify server: %w: %w", ErrUntrusted, err)
		}
		id, err := b.Verify(chain, time.Now())
		if err != nil {
			return err
		}
		return checkServer(id, "/controller/")
	}
	return fmt.Errorf("verify server: %w: it does not belong to the trust domain that made the token", ErrUntrusted)
}

// Peer returns the SPIFFE id of the other end of a connection made with
// [ServerTLS] or [ClientTLS]; ok is false if it showed no certificate.
func Peer(state *tls.ConnectionState) (id string, ok bool) {
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return "", false
	}
	uris := state.PeerCertificates[0].URIs // verified by VerifyConnection
	if len(uris) != 1 {
		return "", false
	}
	return uris[0].String(), true
}
