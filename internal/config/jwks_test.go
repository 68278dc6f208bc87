package config

import (
	"encoding/base64"
	"strings"
	"testing"
)

// What Envoy would not take as its only key set is refused, as is what could make tokens.
// publicKey is an Ed25519 key of RFC 8037.
const publicKey = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

func TestKeySet(t *testing.T) {
	const (
		point = `"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"`
		ec    = `{` + point + `}`
		other = `{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}`
	)
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	for text, want := range map[string]string{
		set(ec):        "",
		set(publicKey): "",
		set(ec, publicKey, other, `{"kty":"new"}`):  "",
		set(`{` + point + `,"alg":"ES256"}`):        "",
		set(`{` + point + `,"alg":5,"kid":["a"]}`):  "",
		set(`{`+point+`,"alg":"ES384"}`, publicKey): "",
		set(`{` + point + `,"alg":"ES384"}`):        "no key that Envoy can use",
		set(`{` + point + `,"d":"AA"}`):             "keys[0]: holds a private key",
		set(ec, `{"kty":"new","qi":"AA"}`):          "keys[1]: holds a private key",
		set(`{"kty":"new","k":"AA"}`):               "keys[0]: holds a secret",
		set(`{"kty":5}`):                            "keys[0]: kty is missing",
		set(`"a"`):                                  "keys[0]: kty is missing",
		set(`null`):                                 "keys[0]: kty is missing",
		set(`{"KTY":"EC"}`):                         "keys[0]: kty is missing",
		strings.Replace(set(ec), "keys", "Keys", 1): "no keys",
		`{"keys":5}`:                                "no keys",
		`[]`:                                        "no keys",
		`null`:                                      "no keys",
		set(strings.Repeat(ec+",", maxKeys) + ec):   "101 keys are more than the limit of 100",
		`{"keys":[` + ec + `],"a":1e999}`:           "out of range",
		`{"keys":[` + ec + `],"keys":[]}`:           "given twice",
		`{"keys":[` + ec + `],"a":"\ud800"}`:        "not plain UTF-8",
		"{\"keys\":[" + ec + "],\"a\":\"\xff\"}":    "not plain UTF-8",
		`{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`: "nested more than 32 deep",
	} {
		err := checkKeySet(base64.StdEncoding.EncodeToString([]byte(text)))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v, want %q", text, err, want)
		}
	}
}
