package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

// jwk is one key of a JSON Web Key Set, RFC 7517 and 7518: what tells the kinds
// apart, the public parts, and those that must not be there.
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	N   string `json:"n"`
	E   string `json:"e"`
	X   string `json:"x"`
	Y   string `json:"y"`
	D   any    `json:"d"`
	P   any    `json:"p"`
	Q   any    `json:"q"`
	K   any    `json:"k"`
}

// Bounds of RSA keys: less can be broken, more makes each request costly.
const minRSA, maxRSA = 2048, 8192

// checkKeySet says what is wrong with a key set in base64 of which Envoy is to
// verify tokens. Everyone who may read the entry, and every callee's sidecar, has it:
// a key with which tokens could be made is refused.
func checkKeySet(encoded string) error {
	if len(encoded) > base64.StdEncoding.EncodedLen(maxKeySet) {
		return fmt.Errorf("longer than %d bytes", maxKeySet)
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return errors.New("not valid base64")
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("not a JSON Web Key Set in base64: %s", shorten(oneLine(err.Error()), maxReason))
	}
	switch {
	case len(set.Keys) == 0:
		return errors.New(`no keys: want {"keys": […]} in base64`)
	case len(set.Keys) > maxKeys:
		return fmt.Errorf("%d keys are more than the limit of %d", len(set.Keys), maxKeys)
	}
	usable := 0
	for i, k := range set.Keys {
		known, err := k.check()
		if err != nil {
			return fmt.Errorf("keys[%d]: %w", i, err)
		}
		if known {
			usable++
		}
	}
	if usable == 0 {
		return errors.New("no key of a type that Envoy can use: want RSA, EC or OKP with Ed25519")
	}
	return nil
}

// check says what is wrong with a key. Of types not known nothing is said: a set
// may have keys for others.
func (k jwk) check() (known bool, err error) {
	if k.D != nil || k.P != nil || k.Q != nil {
		return false, errors.New("holds a private key: give the public part alone, and make a new key")
	}
	switch {
	case k.Kty == "oct" || k.K != nil:
		return false, errors.New("holds a secret with which tokens can be made: want a public key, RSA, EC or OKP")
	case k.Kty == "RSA":
		return true, k.checkRSA()
	case k.Kty == "EC":
		return k.checkEC()
	case k.Kty == "OKP" && k.Crv == "Ed25519":
		x, ok := bigEndian(k.X)
		if !ok || len(x) != ed25519.PublicKeySize {
			return false, errors.New("x is not an Ed25519 key")
		}
		return true, nil
	case k.Kty == "":
		return false, errors.New("kty is missing")
	}
	return false, nil
}

func (k jwk) checkRSA() error {
	n, ok := bigEndian(k.N)
	if !ok {
		return errors.New("n is not a number in base64url")
	}
	if bits := new(big.Int).SetBytes(n).BitLen(); bits < minRSA || bits > maxRSA {
		return fmt.Errorf("an RSA key of %d bits: want %d to %d", bits, minRSA, maxRSA)
	}
	e, ok := bigEndian(k.E)
	if exponent := new(big.Int).SetBytes(e); !ok || exponent.Bit(0) == 0 || exponent.BitLen() > 32 || exponent.Cmp(big.NewInt(3)) < 0 {
		return errors.New("e is not an RSA exponent in base64url")
	}
	return nil
}

func (k jwk) checkEC() (known bool, err error) {
	var curve elliptic.Curve
	switch k.Crv {
	case "P-256":
		curve = elliptic.P256()
	case "P-384":
		curve = elliptic.P384()
	case "P-521":
		curve = elliptic.P521()
	default:
		return false, nil
	}
	size := (curve.Params().BitSize + 7) / 8
	x, okX := bigEndian(k.X)
	y, okY := bigEndian(k.Y)
	point := append(append([]byte{4}, x...), y...)
	if !okX || !okY || len(x) != size || len(y) != size {
		return false, fmt.Errorf("x and y are not a point of %s in base64url", k.Crv)
	}
	if _, err := ecdsa.ParseUncompressedPublicKey(curve, point); err != nil {
		return false, fmt.Errorf("x and y are not a point of %s", k.Crv)
	}
	return true, nil
}

// bigEndian is what a field holds in base64url, or false when that is nothing.
func bigEndian(field string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.DecodeString(field)
	return b, err == nil && len(b) > 0
}
