package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

// TestConnectByTLS uses a server as an operator would run it: with its own
// certificate, for clients with one.
func TestConnectByTLS(t *testing.T) {
	dir := t.TempDir()
	files := certificates(t, dir)
	endpoint := serveTLS(t, dir, files)
	pair, err := tls.LoadX509KeyPair(files.certificate, files.key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	data, err := os.ReadFile(files.authority)
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(data)
	s, err := etcd.Connect(t.Context(), etcd.Cluster{
		Endpoints: []string{endpoint}, Prefix: "tenant-a/",
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), s, "a", []byte("1"), store.Absent); err != nil {
		t.Fatal(err)
	}
	if e := <-w.Events(); e.Key != "a" || string(e.Value) != "1" {
		t.Errorf("the watch yields %+v", e)
	}
	// A cluster with its own, lower limits: etcd's default is 1.5 MiB.
	if _, err := store.Put(t.Context(), s, "large", make([]byte, 3<<20), store.Absent); !isTooLarge(err) {
		t.Errorf("a value over the cluster's limit: %v, want ErrTooLarge", err)
	}
	// Others in the same cluster are not seen.
	other, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{endpoint}, Prefix: "tenant-b/",
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if entries, _, err := other.List(t.Context(), "", "", 0, 0); err != nil || len(entries) != 0 {
		t.Errorf("another prefix holds %v, %v", entries, err)
	}
	for name, config := range map[string]*tls.Config{
		"no certificate":    {RootCAs: roots, MinVersion: tls.VersionTLS12},
		"another authority": {RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	} {
		if s, err := etcd.Connect(shortly(t), etcd.Cluster{Endpoints: []string{endpoint}, TLS: config}); err == nil {
			s.Close()
			t.Errorf("connected with %s", name)
		}
	}
}

type tlsFiles struct{ authority, certificate, key string }

// certificates makes an authority and one certificate for both ends.
func certificates(t *testing.T, dir string) tlsFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	files := tlsFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	for path, template := range map[string]*x509.Certificate{files.authority: authority, files.certificate: leaf} {
		der, err := x509.CreateCertificate(rand.Reader, template, authority, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, path, "CERTIFICATE", der)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, files.key, "PRIVATE KEY", der)
	return files
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func serveTLS(t *testing.T, dir string, files tlsFiles) (endpoint string) {
	t.Helper()
	// The port is free a moment later, too: nobody else in this test asks for one.
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.LogOutputs = filepath.Join(dir, "server"), "fatal", []string{filepath.Join(dir, "log")}
	c.TickMs, c.ElectionMs = 20, 100
	c.ListenPeerUrls = nil
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: address}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = files.certificate, files.key
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = files.authority, true
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	return "https://" + address
}

// TestClusterIsAway: who asks while no member answers is told so, and all goes on by
// itself once one does.
func TestClusterIsAway(t *testing.T) {
	dir := shortDir(t)
	config := etcd.Config{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s", "etcd")}
	member := open(t, config)
	patient, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{"unix://" + config.Socket}, Prefix: "tenant"})
	if err != nil {
		t.Fatal(err)
	}
	defer patient.Close()
	s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{"unix://" + config.Socket}, Prefix: "tenant", Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := store.Put(t.Context(), patient, "a", []byte("1"), store.Absent); err != nil {
		t.Fatal(err)
	}
	if err := member.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), s, "a", []byte("2"), store.AnyRevision); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write while nobody answers: %v", err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a read while nobody answers: %v", err)
	}
	member = open(t, config)
	defer member.Close()
	for {
		entry, err := s.Get(t.Context(), "a")
		if err == nil {
			if string(entry.Value) != "1" {
				t.Errorf("%q is there", entry.Value)
			}
			break
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	// A prefix ends where a folder does.
	other, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{"unix://" + config.Socket}, Prefix: "ten"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if entries, _, err := other.List(t.Context(), "", "", 0, 0); err != nil || len(entries) != 0 {
		t.Errorf("another prefix holds %v, %v", entries, err)
	}
}

// shortDir is a folder for sockets, which have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
