package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Keys sign and verify tokens. Tokens are signed with the first private key and accepted with any
// key, so that keys can be rotated while all tokens remain valid.
type Keys struct {
	signer     jose.Signer
	public     []jose.JSONWebKey
	algorithms []jose.SignatureAlgorithm
}

// ParseKeys parses private and public keys in PEM: RSA of at least 2,048 bits, or ECDSA on P-256,
// P-384 or P-521.
func ParseKeys(data []byte) (*Keys, error) {
	k := &Keys{}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if err := k.add(block); err != nil {
			return nil, err
		}
	}
	if k.signer == nil {
		return nil, errors.New("service account key: no private key in PEM found")
	}
	return k, nil
}

func (k *Keys) add(block *pem.Block) error {
	var private, public any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil // EC PARAMETERS and the like
	}
	if err != nil {
		return fmt.Errorf("service account key: %s: %w", block.Type, err)
	}
	if private != nil {
		signer, ok := private.(crypto.Signer)
		if !ok {
			return fmt.Errorf("service account key: %T cannot sign", private)
		}
		public = signer.Public()
	}
	algorithm, err := algorithmOf(public)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	hash := sha256.Sum256(der)
	key := jose.JSONWebKey{Algorithm: string(algorithm), Key: public, KeyID: base64.RawURLEncoding.EncodeToString(hash[:]), Use: "sig"}
	if !slices.Contains(k.algorithms, algorithm) {
		k.algorithms = append(k.algorithms, algorithm)
	}
	k.public = append(k.public, key)
	if private == nil || k.signer != nil {
		return nil
	}
	key.Key = private
	if k.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, nil); err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	return nil
}

func algorithmOf(public any) (jose.SignatureAlgorithm, error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 {
			return "", fmt.Errorf("service account key: RSA of %d bits is too short", key.N.BitLen())
		}
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		switch key.Curve.Params().BitSize {
		case 256:
			return jose.ES256, nil
		case 384:
			return jose.ES384, nil
		case 521:
			return jose.ES512, nil
		}
	}
	return "", fmt.Errorf("service account key: %T is neither RSA nor ECDSA on P-256, P-384 or P-521", public)
}

// verify checks the signature with the key that the token names, or with every key if it names
// none, and decodes the claims.
func (k *Keys) verify(t *jwt.JSONWebToken, into ...any) bool {
	header := t.Headers[0]
	for i := range k.public {
		key := &k.public[i]
		if key.Algorithm != header.Algorithm || header.KeyID != "" && header.KeyID != key.KeyID {
			continue
		}
		if t.Claims(key.Key, into...) == nil {
			return true
		}
	}
	return false
}
