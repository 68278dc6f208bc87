package envoy

import tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

// Names of the secrets that every proxy asks for.
const (
	LeafSecretName  = "leaf"
	RootsSecretName = "roots"
)

// LeafSecret is the sidecar's own certificate, with its chain, and its key.
func LeafSecret(certPEM, keyPEM []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: LeafSecretName, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inlineBytes(certPEM),
		PrivateKey:       inlineBytes(keyPEM),
	}}}
}

// RootsSecret is the certificates that callers and callees must be signed under.
func RootsSecret(rootsPEM []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: RootsSecretName, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inlineBytes(rootsPEM),
	}}}
}
