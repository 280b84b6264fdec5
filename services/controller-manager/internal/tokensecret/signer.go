package tokensecret

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

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
)

// Signer signs tokens with the cluster's service-account key.
type Signer struct{ signer jose.Signer }

// ParseKey reads the first private key in PEM: RSA, or ECDSA on P-256, P-384 or
// P-521. The key's id is that by which the apiserver publishes it.
func ParseKey(data []byte) (*Signer, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("no private key in PEM")
		}
		key, err := parse(block)
		if err != nil {
			return nil, err
		}
		if key != nil {
			return newSigner(key)
		}
	}
}

func parse(block *pem.Block) (crypto.Signer, error) {
	var (
		key any
		err error
	)
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, nil // EC PARAMETERS, public keys
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", block.Type, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

func newSigner(key crypto.Signer) (*Signer, error) {
	algorithm := jose.RS256
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			algorithm = jose.ES256
		case 384:
			algorithm = jose.ES384
		case 521:
			algorithm = jose.ES512
		default:
			return nil, fmt.Errorf("curve %s is not supported", k.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("a %T is not supported", k)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(der)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{
		Algorithm: string(algorithm), Key: key, KeyID: base64.RawURLEncoding.EncodeToString(hash[:]), Use: "sig",
	}}, nil)
	if err != nil {
		return nil, err
	}
	return &Signer{signer: s}, nil
}

// claims holds the claims of a token in a Secret, as Kubernetes writes them. Such a
// token does not expire.
type claims struct {
	Namespace string `json:"kubernetes.io/serviceaccount/namespace"`
	Secret    string `json:"kubernetes.io/serviceaccount/secret.name"`
	Name      string `json:"kubernetes.io/serviceaccount/service-account.name"`
	UID       string `json:"kubernetes.io/serviceaccount/service-account.uid"`
}

func (s *Signer) sign(account *corev1.ServiceAccount, secret string) (string, error) {
	return jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer:  "kubernetes/serviceaccount",
		Subject: "system:serviceaccount:" + account.Namespace + ":" + account.Name,
	}).Claims(claims{Namespace: account.Namespace, Secret: secret, Name: account.Name, UID: string(account.UID)}).Serialize()
}
