package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"unicode/utf8"
)

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
	if !utf8.Valid(data) || surrogates.Match(data) {
		return errors.New("not a JSON Web Key Set: not plain UTF-8")
	}
	r := &report{}
	set := parseJSON(data, r)
	if set == nil || len(r.list) > 0 {
		return fmt.Errorf("not a JSON Web Key Set: %s", shorten(oneLine(r.err().Error()), maxReason))
	}
	keys := set.member("keys")
	switch {
	case keys == nil || keys.kind != listNode || len(keys.items) == 0:
		return errors.New(`no keys: want {"keys": […]} in base64`)
	case len(keys.items) > maxKeys:
		return fmt.Errorf("%d keys are more than the limit of %d", len(keys.items), maxKeys)
	}
	usable := 0
	for i, k := range keys.items {
		known, err := jwk{k}.check()
		if err != nil {
			return fmt.Errorf("keys[%d]: %w", i, err)
		}
		if known {
			usable++
		}
	}
	if usable == 0 {
		return errors.New("no key that Envoy can use: want RSA, EC or OKP with Ed25519, and an alg for signatures of that type")
	}
	return nil
}

// surrogates are escapes that name no character by themselves.
var surrogates = regexp.MustCompile(`(?i)\\u[d][89a-f]`)

// jwk is one key of a JSON Web Key Set, RFC 7517, 7518 and 8037.
type jwk struct{ *node }

// field is the text of a member, whose name is exact; "" when it is none.
func (k jwk) field(name string) string {
	if m := k.member(name); m != nil && m.kind == textNode {
		return m.text
	}
	return ""
}

// signs reports whether the key's alg, when it has one, is one of those.
func (k jwk) signs(algs ...string) bool {
	alg := k.field("alg")
	return alg == "" || slices.Contains(algs, alg)
}

// check says what is wrong with a key. Of types not known nothing is said: a set
// may have keys for others.
func (k jwk) check() (known bool, err error) {
	for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth"} {
		if k.member(name) != nil {
			return false, errors.New("holds a private key: give the public part alone, and make a new key")
		}
	}
	switch kty := k.field("kty"); {
	case kty == "":
		return false, errors.New("kty is missing")
	case kty == "oct" || k.member("k") != nil:
		return false, errors.New("holds a secret with which tokens can be made: want a public key, RSA, EC or OKP")
	case kty == "RSA":
		return k.signs("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), k.checkRSA()
	case kty == "EC":
		return k.checkEC()
	case kty == "OKP" && k.field("crv") == "Ed25519":
		x, ok := bigEndian(k.field("x"))
		if !ok || len(x) != ed25519.PublicKeySize {
			return false, errors.New("x is not an Ed25519 key")
		}
		return k.signs("EdDSA"), nil
	}
	return false, nil
}

func (k jwk) checkRSA() error {
	n, ok := bigEndian(k.field("n"))
	if !ok {
		return errors.New("n is not a number in base64url")
	}
	if bits := new(big.Int).SetBytes(n).BitLen(); bits < minRSA || bits > maxRSA {
		return fmt.Errorf("an RSA key of %d bits: want %d to %d", bits, minRSA, maxRSA)
	}
	e, ok := bigEndian(k.field("e"))
	if exponent := new(big.Int).SetBytes(e); !ok || exponent.Bit(0) == 0 || exponent.BitLen() > 32 || exponent.Cmp(big.NewInt(3)) < 0 {
		return errors.New("e is not an RSA exponent in base64url")
	}
	return nil
}

func (k jwk) checkEC() (known bool, err error) {
	var curve elliptic.Curve
	var alg string
	crv := k.field("crv")
	switch crv {
	case "P-256":
		curve, alg = elliptic.P256(), "ES256"
	case "P-384":
		curve, alg = elliptic.P384(), "ES384"
	case "P-521":
		curve, alg = elliptic.P521(), "ES512"
	default:
		return false, nil
	}
	size := (curve.Params().BitSize + 7) / 8
	x, okX := bigEndian(k.field("x"))
	y, okY := bigEndian(k.field("y"))
	point := append(append([]byte{4}, x...), y...)
	if !okX || !okY || len(x) != size || len(y) != size {
		return false, fmt.Errorf("x and y are not a point of %s in base64url", crv)
	}
	if _, err := ecdsa.ParseUncompressedPublicKey(curve, point); err != nil {
		return false, fmt.Errorf("x and y are not a point of %s", crv)
	}
	return k.signs(alg), nil
}

// bigEndian is what a field holds in base64url, or false when that is nothing.
func bigEndian(field string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.DecodeString(field)
	return b, err == nil && len(b) > 0
}
