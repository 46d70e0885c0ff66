package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxFile bounds what is read of a key or certificate file.
const maxFile = 1 << 20

// credential is a private key with the chain that names it, leaf first.
type credential struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

// parseCredential reads one private key and its chain from PEM, and checks that
// they belong together.
func parseCredential(data []byte) (credential, error) {
	var c credential
	var certificates []byte
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return credential{}, errors.New("there is something besides PEM in it")
			}
			break
		}
		switch {
		case block.Type == "PRIVATE KEY" && c.key == nil:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return credential{}, fmt.Errorf("read private key: %w", err)
			}
			signer, ok := key.(crypto.Signer)
			if !ok {
				return credential{}, fmt.Errorf("a private key of type %T cannot sign", key)
			}
			c.key = signer
		case block.Type == "CERTIFICATE":
			certificates = append(certificates, pem.EncodeToMemory(block)...)
		default:
			return credential{}, fmt.Errorf("there is an unexpected PEM block %.40q in it", block.Type)
		}
	}
	if c.key == nil {
		return credential{}, errors.New("there is no private key in it")
	}
	var err error
	if c.chain, err = parseCertificates(certificates); err != nil {
		return credential{}, err
	}
	return c, c.matches()
}

// matches checks that the leaf certifies the key.
func (c credential) matches() error {
	public, ok := c.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(c.chain[0].PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

func (c credential) encode() ([]byte, error) {
	data, err := encodeKey(c.key)
	if err != nil {
		return nil, err
	}
	return append(data, encodeCertificates(c.chain)...), nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// makePrivateDir creates a directory of mode 0700. One that is there already may
// be read by others, since the keys in it may not, but not be written by them.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory for keys: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at directory for keys: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s (mode %#o), which holds keys: run chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

// readPrivate reads a file that nobody else may read or write.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others may read %s (mode %#o), which holds a private key: if nobody has, run chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return readBounded(path)
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() // nothing was written
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s holds more than %d bytes", path, maxFile)
	}
	return data, nil
}

// writeFile writes a file whole or not at all, so that a crash leaves either the
// old or the new one. Without replace it fails with fs.ErrExist if the file is there.
func writeFile(path string, data []byte, mode os.FileMode, replace bool) (err error) {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		// Gone already after a rename.
		if removeErr := os.Remove(temp.Name()); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}()
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	publish := os.Link
	if replace {
		publish = os.Rename
	}
	if err := publish(temp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
