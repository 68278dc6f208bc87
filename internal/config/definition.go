package config

import "github.com/crossfade-mesh/crossfade/internal/catalog"

// Definition is one service as its owner declares it: the instance, its sidecar
// and its checks. It is what Consul's service definition file, the body of
// PUT /v1/agent/service/register and the short YAML form all decode to.
type Definition struct {
	// Service is the instance itself. ID defaults to Name.
	Service catalog.Service
	// Protocol is set by the short form only: the service-defaults protocol that
	// the registering sidecar writes when no entry says otherwise.
	Protocol string
	// Sidecar is connect.sidecar_service: the proxy to register beside it, or nil.
	// Empty fields take Consul's defaults; see Proxy for the destination. Port 0
	// asks for a free one.
	Sidecar *Definition
	// Checks are the service's own.
	Checks []CheckDefinition
}

// CheckDefinition says how to check an instance. Exactly one of HTTP, TCP, GRPC,
// TTL and AliasService is set.
type CheckDefinition struct {
	ID     string // default "service:<service id>", with ":<n>" when there are several
	Name   string
	Notes  string
	Status catalog.Status // before the first result; default critical

	HTTP          string // URL
	Method        string // default GET
	Header        map[string][]string
	Body          string
	TLSSkipVerify bool
	TCP           string // host:port
	GRPC          string // host:port[/service]
	GRPCUseTLS    bool
	TTL           Duration
	AliasNode     string
	AliasService  string // service ID on the same node

	Interval Duration // required for HTTP, TCP, GRPC
	Timeout  Duration // default 10s

	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int
	DeregisterCriticalServiceAfter Duration // 0: never
}
