package config

import (
	"reflect"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// rules say what becomes of Consul's fields that a Go struct has no place for.
type rules struct {
	// ignored are read-only in Consul: its answers hold them, its writes do not heed them.
	ignored []string
	// unserved are settings that would have no effect here. They pass while they are
	// off, since Consul's clients send them empty.
	unserved []unserved
	// aliases are second names of fields, from and to.
	aliases [][2]string
}

type unserved struct {
	name string
	off  []string // strings that ask for nothing, besides ""
	why  string   // in place of "not served by this version"
}

// field is the canonical name of a field, its alias resolved.
func (r rules) field(name string) string {
	key := canonical(name)
	for _, a := range r.aliases {
		if canonical(a[0]) == key {
			return canonical(a[1])
		}
	}
	return key
}

func (r rules) ignores(key string) bool {
	return slices.ContainsFunc(r.ignored, func(s string) bool { return canonical(s) == key })
}

func (r rules) unservedField(key string) (unserved, bool) {
	i := slices.IndexFunc(r.unserved, func(u unserved) bool { return canonical(u.name) == key })
	if i < 0 {
		return unserved{}, false
	}
	return r.unserved[i], true
}

const enterpriseOnly = `only "default" exists; others are a feature of Consul Enterprise`

// tenancy are the fields that place a thing in a namespace, a partition or a peer.
func tenancy(more ...unserved) []unserved {
	return append([]unserved{
		{name: "Namespace", off: []string{"default"}, why: enterpriseOnly},
		{name: "Partition", off: []string{"default"}, why: enterpriseOnly},
		{name: "Peer"},
	}, more...)
}

// What asks for nothing in the fields of the same name: this mesh dials sidecars
// directly and reaches its own datacenter without gateways.
func directMode() unserved { return unserved{name: "Mode", off: []string{"direct"}} }
func noGateway() unserved  { return unserved{name: "MeshGateway", off: []string{"none"}} }
func accessLogs() unserved { return unserved{name: "AccessLogs", off: []string{"stdout"}} }

func samenessGroup() unserved {
	return unserved{name: "SamenessGroup", why: "sameness groups are a feature of Consul Enterprise"}
}

const outside = "not served by this version: there are no gateways to destinations outside the mesh"

// rulesFor is the one table of Consul's fields without a place here, by the struct they belong to.
func rulesFor(t reflect.Type) rules {
	entry := []string{"CreateIndex", "ModifyIndex", "Hash", "Status"}
	switch t {
	case reflect.TypeFor[ServiceDefaults]():
		return rules{ignored: entry, unserved: tenancy(
			directMode(), noGateway(),
			unserved{name: "TransparentProxy"},
			unserved{name: "Expose"},
			unserved{name: "ExternalSNI", why: outside},
			unserved{name: "RateLimits", why: "not served by this version: nothing limits how often a service is called"},
			unserved{name: "EnvoyExtensions"},
			unserved{name: "MaxRequestHeadersKB", why: "not served by this version: Envoy's limit of 60 KiB holds"},
		)}
	case reflect.TypeFor[ProxyDefaults]():
		return rules{ignored: entry, unserved: tenancy(
			directMode(), noGateway(), accessLogs(),
			unserved{name: "TransparentProxy"},
			unserved{name: "Expose"},
			unserved{name: "EnvoyExtensions"},
			unserved{name: "FailoverPolicy"},
			unserved{name: "PrioritizeByLocality"},
		)}
	case reflect.TypeFor[Mesh]():
		return rules{ignored: entry, unserved: tenancy(
			unserved{name: "Name", off: []string{MeshName}, why: "a mesh entry has no name"},
			unserved{name: "TransparentProxy"},
			unserved{name: "ValidateClusters"},
			unserved{name: "TLS"},
			unserved{name: "Peering"},
		)}
	case reflect.TypeFor[MeshHTTP]():
		return rules{unserved: []unserved{{name: "SanitizeXForwardedClientCert"}}}
	case reflect.TypeFor[ServiceIntentions]():
		return rules{ignored: entry, unserved: tenancy()}
	case reflect.TypeFor[SourceIntention]():
		return rules{
			ignored:  []string{"LegacyID", "LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime"},
			unserved: tenancy(samenessGroup()),
		}
	case reflect.TypeFor[ServiceRouter](), reflect.TypeFor[ServiceSplitter](), reflect.TypeFor[JWTProvider]():
		return rules{ignored: entry, unserved: tenancy()}
	case reflect.TypeFor[RouteDestination](), reflect.TypeFor[ServiceSplit](), reflect.TypeFor[FailoverTarget]():
		return rules{unserved: tenancy()}
	case reflect.TypeFor[ServiceResolver]():
		return rules{ignored: entry, unserved: tenancy(
			unserved{name: "PrioritizeByLocality", off: []string{"none"}, why: "is a feature of Consul Enterprise"},
		)}
	case reflect.TypeFor[ResolverRedirect]():
		return rules{unserved: tenancy(samenessGroup())}
	case reflect.TypeFor[ResolverFailover]():
		return rules{unserved: tenancy(
			samenessGroup(),
			unserved{name: "Policy", off: []string{"sequential"}, why: "is a feature of Consul Enterprise: targets are tried in order"},
		)}
	case reflect.TypeFor[JSONWebKeySet]():
		return rules{unserved: []unserved{{name: "Remote", why: "remote key sets are not served, they need a way out of the mesh: give the keys in Local { JWKS }"}}}
	case reflect.TypeFor[LocalJWKS]():
		return rules{unserved: []unserved{{name: "Filename", why: "key sets in files are not served, they would have to be on every host: give the keys in JWKS"}}}
	case reflect.TypeFor[TrafficPolicy](), reflect.TypeFor[TrafficShift]():
		return rules{ignored: entry, unserved: tenancy()}
	case reflect.TypeFor[UpstreamSettings]():
		return rules{unserved: tenancy(noGateway())}
	case reflect.TypeFor[serviceBody]():
		return rules{ignored: []string{"CreateIndex", "ModifyIndex", "ContentHash", "Datacenter"}, unserved: tenancy(
			unserved{name: "Ports"},
			unserved{name: "Locality"},
			unserved{name: "Token"},
		)}
	case reflect.TypeFor[catalog.Proxy]():
		return rules{unserved: []unserved{
			noGateway(), accessLogs(),
			{name: "TransparentProxy"},
			{name: "EnvoyExtensions"},
			{name: "MutualTLSMode", why: "is said in service-defaults"},
		}}
	case reflect.TypeFor[catalog.ExposePath]():
		return rules{ignored: []string{"ParsedFromCheck"}}
	case reflect.TypeFor[catalog.Upstream]():
		return rules{unserved: []unserved{noGateway(), {name: "CentrallyConfigured"}}}
	case reflect.TypeFor[CheckDefinition]():
		return rules{aliases: [][2]string{{"ID", "CheckID"}}, unserved: tenancy(
			unserved{name: "Args", why: scriptChecks},
			unserved{name: "ScriptArgs", why: scriptChecks},
			unserved{name: "Script", why: scriptChecks},
			unserved{name: "DockerContainerID", why: scriptChecks},
			unserved{name: "Shell", why: scriptChecks},
			unserved{name: "OSService"},
			unserved{name: "ServiceID"},
			unserved{name: "Token"},
		)}
	}
	return rules{}
}

const scriptChecks = "checks that run a command are not served: use http, tcp, udp, grpc, h2ping, or a ttl check that your command updates"

// unservedKinds are kinds of Consul's that have no meaning here yet.
func unservedKinds() []Kind {
	return []Kind{
		"ingress-gateway", "terminating-gateway", "api-gateway", "bound-api-gateway",
		"http-route", "tcp-route", "inline-certificate", "file-system-certificate",
		"exported-services", "sameness-group", "control-plane-request-limit",
	}
}
