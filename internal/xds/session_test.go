package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// fixed is a source for tests.
type fixed map[Type]map[string]*Resource

func (f fixed) all(t Type) Resources {
	if f[t] == nil {
		return nil
	}
	return Sort(slices.AppendSeq([]*Resource{}, maps.Values(f[t])))
}
func (f fixed) get(t Type, n string) *Resource { return f[t][n] }
func (f fixed) absent(Type, string) bool       { return true }
func (f fixed) instead(*Resource) (*Resource, Refusal) {
	return nil, Refusal{}
}

func (f fixed) put(t Type, name, content string) { f.message(t, name, wrapperspb.String(content)) }

func (f fixed) message(t Type, name string, m proto.Message) {
	res, err := NewResource(t, name, m)
	if err != nil {
		panic(err)
	}
	if f[t] == nil {
		f[t] = map[string]*Resource{}
	}
	f[t][name] = res
}

// script drives a session and writes down what it sends.
type script struct {
	t   *testing.T
	s   *session
	src fixed
	now time.Time
}

func newScript(t *testing.T) *script {
	return &script{t: t, s: newSession(0), src: fixed{ClusterType: {}, ListenerType: {}}}
}

func (s *script) put(t Type, name, content string) {
	s.src.put(t, name, content)
	s.s.mark(t, name)
}

func (s *script) drop(t Type, name string) {
	delete(s.src[t], name)
	s.s.mark(t, name)
}

func (s *script) subscribe(t Type, names ...string) {
	s.s.handle(request{typ: t, subscribe: names}, s.src)
}

// flow sends all that is due and returns it as "Type:+a,b-c"; answered types are in ack.
func (s *script) flow() []*response {
	var out []*response
	for r := s.s.next(s.src, s.now); r != nil; r = s.s.next(s.src, s.now) {
		out = append(out, r)
	}
	return out
}

func describe(rs []*response) string {
	var out []string
	for _, r := range rs {
		d := r.typ.Short() + ":"
		for _, res := range r.resources {
			d += "+" + res.Name
		}
		for _, n := range r.removed {
			d += "-" + n
		}
		out = append(out, d)
	}
	return strings.Join(out, " ")
}

func (s *script) want(want string) []*response {
	s.t.Helper()
	rs := s.flow()
	if got := describe(rs); got != want {
		s.t.Fatalf("sent %q, want %q", got, want)
	}
	return rs
}

func (s *script) ack(rs ...*response) {
	for _, r := range rs {
		s.s.handle(request{typ: r.typ, nonce: r.nonce}, s.src)
	}
}

func (s *script) nack(r *response, msg string) *outcome {
	_, _, out := s.s.handle(request{typ: r.typ, nonce: r.nonce, nack: true, message: msg}, s.src)
	return out
}

func TestMakeBeforeBreak(t *testing.T) {
	s := newScript(t)
	s.subscribe(ClusterType)
	s.subscribe(ListenerType)
	s.subscribe(RouteType, "r")
	s.src.put(RouteType, "r", "to a")
	s.put(ClusterType, "a", "1")
	s.put(ListenerType, "l", "1")
	first := s.want("Cluster:+a") // routes and listeners wait until the cluster is warm
	s.subscribe(EndpointType, "a")
	s.put(EndpointType, "a", "host")
	s.ack(s.want("ClusterLoadAssignment:+a")...) // its endpoints don't
	s.ack(first...)
	s.ack(s.want("RouteConfiguration:+r Listener:+l")...)

	// A route moves from cluster a to b; a goes last.
	s.put(ClusterType, "b", "1")
	s.put(RouteType, "r", "to b")
	s.drop(ClusterType, "a")
	add := s.want("Cluster:+b")
	s.ack(add...)
	route := s.want("RouteConfiguration:+r")
	s.want("")
	s.ack(route...)
	s.ack(s.want("Cluster:-a")...)
	s.want("")
}

// A request that is on its way may be tried again, at the cluster that was chosen for it.
func TestClustersLinger(t *testing.T) {
	s := newScript(t)
	s.s.linger, s.now = 10*time.Second, time.Unix(100, 0)
	s.subscribe(ClusterType)
	s.subscribe(RouteType, "r")
	s.put(ClusterType, "a", "1")
	s.put(ClusterType, "b", "1")
	s.put(RouteType, "r", "to a")
	s.ack(s.want("Cluster:+a+b")...)
	s.ack(s.want("RouteConfiguration:+r")...)
	s.put(RouteType, "r", "to c")
	s.put(ClusterType, "c", "1")
	s.drop(ClusterType, "a")
	s.ack(s.want("Cluster:+c")...)
	if at := s.s.wakeup(s.now); !at.IsZero() {
		t.Fatalf("a is to go at %v, and the route still leads there", at)
	}
	s.now = s.now.Add(time.Minute)
	s.ack(s.want("RouteConfiguration:+r")...)
	s.want("")
	if at := s.s.wakeup(s.now); at != s.now.Add(10*time.Second) {
		t.Fatalf("a is to go at %v, want 10 s after %v", at, s.now)
	}
	s.now = s.now.Add(5 * time.Second)
	s.drop(ClusterType, "b")
	s.want("")
	s.put(ClusterType, "b", "1") // comes back as it was
	s.want("")
	s.now = s.now.Add(5 * time.Second)
	s.ack(s.want("Cluster:-a")...)
	s.now = s.now.Add(time.Minute)
	s.want("")
	if at := s.s.wakeup(s.now); !at.IsZero() {
		t.Errorf("something is to go at %v", at)
	}
}

// A cluster that lingers may have been told that it has no endpoints.
func TestRoutesWaitForFirstEndpoints(t *testing.T) {
	s := newScript(t)
	s.subscribe(ClusterType)
	s.subscribe(RouteType, "r")
	s.subscribe(EndpointType, "a", "b")
	s.put(ClusterType, "a", "1")
	s.put(ClusterType, "b", "1")
	s.put(EndpointType, "a", "host")
	s.put(EndpointType, "b", "host")
	s.put(RouteType, "r", "to a")
	s.ack(s.want("Cluster:+a+b ClusterLoadAssignment:+a+b")...)
	s.ack(s.want("RouteConfiguration:+r")...)
	s.drop(EndpointType, "b")
	s.ack(s.want("ClusterLoadAssignment:-b")...)

	s.put(EndpointType, "a", "other host")
	first := s.want("ClusterLoadAssignment:+a") // on its way
	s.put(EndpointType, "b", "host")
	s.put(RouteType, "r", "to b")
	s.want("")
	s.ack(first...)
	second := s.want("ClusterLoadAssignment:+b")
	s.ack(second...)
	route := s.want("RouteConfiguration:+r")
	s.ack(route...)

	s.put(EndpointType, "b", "other host")
	s.put(RouteType, "r", "to a")
	s.ack(s.want("ClusterLoadAssignment:+b RouteConfiguration:+r")...) // known ones are not waited for
}

// A cluster may be wanted again while its removal is on its way.
func TestRoutesWaitForAClusterThatComesBack(t *testing.T) {
	s := newScript(t)
	s.subscribe(ClusterType)
	s.subscribe(RouteType, "r")
	s.put(ClusterType, "a", "1")
	s.put(ClusterType, "b", "1")
	s.put(RouteType, "r", "to a")
	s.ack(s.want("Cluster:+a+b")...)
	s.ack(s.want("RouteConfiguration:+r")...)
	s.drop(ClusterType, "b")
	removal := s.want("Cluster:-b")
	s.put(ClusterType, "b", "1")
	s.put(RouteType, "r", "to b")
	s.want("") // not yet the route
	s.ack(removal...)
	s.ack(s.want("Cluster:+b")...)
	s.ack(s.want("RouteConfiguration:+r")...)
}

func TestEndpointsFollowAChangedCluster(t *testing.T) {
	s := newScript(t)
	s.subscribe(ClusterType)
	s.subscribe(EndpointType, "a")
	s.put(EndpointType, "a", "host")
	s.put(ClusterType, "a", "1")
	s.ack(s.want("Cluster:+a ClusterLoadAssignment:+a")...)
	s.put(ClusterType, "a", "2")
	s.ack(s.want("Cluster:+a ClusterLoadAssignment:+a")...)
	s.put(EndpointType, "a", "other host")
	s.ack(s.want("ClusterLoadAssignment:+a")...)
}

// Two clusters can have the same endpoints, under a name that is neither's.
func TestEndpointsFollowEveryClusterThatHasThem(t *testing.T) {
	s := newScript(t)
	cluster := func(name string, timeout int64) {
		s.src.message(ClusterType, name, &clusterv3.Cluster{
			Name: name, ConnectTimeout: &durationpb.Duration{Seconds: timeout}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "hosts"},
		})
		s.s.mark(ClusterType, name)
	}
	s.subscribe(ClusterType)
	s.subscribe(EndpointType, "hosts")
	s.put(EndpointType, "hosts", "host")
	cluster("a", 1)
	s.ack(s.want("Cluster:+a ClusterLoadAssignment:+hosts")...)
	cluster("b", 1)
	s.ack(s.want("Cluster:+b ClusterLoadAssignment:+hosts")...)
	cluster("b", 2)
	s.ack(s.want("Cluster:+b ClusterLoadAssignment:+hosts")...)
}

func TestOneResponsePerTypeAndOnlyTheNewest(t *testing.T) {
	s := newScript(t)
	s.subscribe(EndpointType, "a")
	s.put(EndpointType, "a", "0")
	first := s.want("ClusterLoadAssignment:+a")
	for i := range 100 {
		s.put(EndpointType, "a", fmt.Sprint(i+1))
		s.want("")
	}
	s.ack(first...)
	last := s.want("ClusterLoadAssignment:+a")
	if last[0].resources[0] != s.src[EndpointType]["a"] {
		t.Error("an old version was sent after a newer one was known")
	}
	s.put(EndpointType, "a", "100") // as before
	s.ack(last...)
	s.want("")
}

func TestNACKIsContained(t *testing.T) {
	s := newScript(t)
	s.subscribe(RouteType, "a", "b", "c")
	for _, n := range []string{"a", "b", "c"} {
		s.put(RouteType, n, "good")
	}
	s.ack(s.want("RouteConfiguration:+a+b+c")...)
	for _, n := range []string{"a", "b", "c"} {
		s.put(RouteType, n, "changed")
	}
	out := s.nack(s.want("RouteConfiguration:+a+b+c")[0], "missing )")
	if !out.retry || len(out.refused) > 0 {
		t.Fatalf("refusal of several resources gave %+v, want a retry one by one", out)
	}
	s.ack(s.want("RouteConfiguration:+a")...)
	out = s.nack(s.want("RouteConfiguration:+b")[0], "missing )")
	if r := out.refused["b"]; r.Message != "missing )" || r.Version != s.src[RouteType]["b"].Version {
		t.Fatalf("refusal of b alone gave %+v", out)
	}
	s.ack(s.want("RouteConfiguration:+c")...)
	s.want("") // the refused version is not sent again
	if held := s.s.of(RouteType).acked("b"); held == s.src[RouteType]["b"].Version {
		t.Error("the refused version counts as held")
	}
	s.put(RouteType, "b", "mended")
	s.ack(s.want("RouteConfiguration:+b")...)
	if left := s.s.of(RouteType).refused; left.size() > 0 {
		t.Errorf("after the mended version was taken, still refused: %v", left)
	}
}

func TestNACKOfManyAnswersEach(t *testing.T) {
	s := newScript(t)
	s.subscribe(EndpointType, "a", "b")
	s.put(EndpointType, "a", "1")
	s.put(EndpointType, "b", "1")
	s.nack(s.want("ClusterLoadAssignment:+a+b")[0], "no")
	s.put(EndpointType, "a", "2") // newer before its turn
	r := s.want("ClusterLoadAssignment:+a")
	if r[0].resources[0] != s.src[EndpointType]["a"] {
		t.Error("a retry sent an old version")
	}
	s.ack(r...)
	s.ack(s.want("ClusterLoadAssignment:+b")...)
	s.want("")
}

func TestReconnectSendsOnlyWhatDiffers(t *testing.T) {
	s := newScript(t)
	for _, n := range []string{"same", "changed", "new"} {
		s.src.put(ClusterType, n, "1")
	}
	s.s.handle(request{typ: ClusterType, initial: map[string]string{"same": s.src[ClusterType]["same"].Version, "changed": "old", "ghost": "x"}}, s.src)
	s.ack(s.want("Cluster:+changed+new")...)
	s.ack(s.want("Cluster:-ghost")...)
	s.want("")
}

func TestWildcardIsAnsweredEvenWhenEmpty(t *testing.T) {
	s := newScript(t)
	s.subscribe(ListenerType)
	s.ack(s.want("Listener:")...)
	s.want("")
	unknown := newScript(t)
	unknown.src[ListenerType] = nil
	unknown.subscribe(ListenerType)
	unknown.want("") // not known is not empty
}

func TestAbsentNameIsSaidOnce(t *testing.T) {
	s := newScript(t)
	s.subscribe(EndpointType, "nope")
	s.ack(s.want("ClusterLoadAssignment:-nope")...)
	s.s.mark(EndpointType, "nope")
	s.want("")
	s.put(EndpointType, "nope", "1")
	s.ack(s.want("ClusterLoadAssignment:+nope")...)
}

func TestSubscribingAgainSendsAgain(t *testing.T) {
	s := newScript(t)
	s.subscribe(EndpointType, "a")
	s.put(EndpointType, "a", "1")
	s.ack(s.want("ClusterLoadAssignment:+a")...)
	s.subscribe(EndpointType, "a")
	s.ack(s.want("ClusterLoadAssignment:+a")...)
	s.s.handle(request{typ: EndpointType, unsubscribe: []string{"a"}}, s.src)
	s.put(EndpointType, "a", "2")
	s.want("")
}

func TestVersionsAreHashesOfContent(t *testing.T) {
	a, b, c := fixed{}, fixed{}, fixed{}
	a.put(ClusterType, "x", "1")
	b.put(ClusterType, "x", "1")
	c.put(ClusterType, "x", "2")
	if a[ClusterType]["x"].Version != b[ClusterType]["x"].Version || a[ClusterType]["x"].Version == c[ClusterType]["x"].Version {
		t.Errorf("versions %s, %s, %s; want the first two equal, the third different", a[ClusterType]["x"].Version, b[ClusterType]["x"].Version, c[ClusterType]["x"].Version)
	}
}

// What is sent again is sent whatever the client has acknowledged, and what it did not
// answer does not hold that up.
func TestResend(t *testing.T) {
	s := newScript(t)
	s.put(ClusterType, "a", "1")
	s.put(ClusterType, "b", "1")
	s.subscribe(ClusterType)
	s.ack(s.want("Cluster:+a+b")...)
	s.want("")
	s.s.resend(ClusterType, []string{"a"}, s.src)
	s.ack(s.want("Cluster:+a")...)

	s.put(ClusterType, "b", "2")
	lost := s.want("Cluster:+b")
	s.want("")
	s.s.resend(ClusterType, nil, s.src)
	again := s.want("Cluster:+b")
	s.ack(lost...) // too late
	s.put(ClusterType, "a", "2")
	s.want("")
	s.ack(again...)
	s.ack(s.want("Cluster:+a")...)

	s.drop(ClusterType, "b")
	s.ack(s.want("Cluster:-b")...)
	s.s.resend(ClusterType, []string{"b", "ghost"}, s.src) // the client has them for all that
	s.ack(s.want("Cluster:-b-ghost")...)
	s.want("")
	s.s.resend(RouteType, []string{"r"}, s.src) // never asked for
	s.want("")
}

func TestRecordsRoundTrip(t *testing.T) {
	src := fixed{}
	src.put(ClusterType, "a", "1")
	src.put(ClusterType, "b", "2")
	b := AppendRecord(nil, ClusterType, []*Resource{src[ClusterType]["a"], src[ClusterType]["b"]})
	got, err := ParseRecords(b)
	if err != nil || len(got) != 2 {
		t.Fatalf("ParseRecords gave %d resources, %v", len(got), err)
	}
	for _, r := range got {
		if want := src[ClusterType][r.Name]; r.Version != want.Version || !slices.Equal(r.wire, want.wire) || r.Type != ClusterType {
			t.Errorf("resource %q came back different", r.Name)
		}
	}
	for n := range b {
		if _, err := ParseRecords(b[:n]); err == nil && n > 0 {
			t.Fatalf("ParseRecords took %d of %d bytes", n, len(b))
		}
	}
}

func FuzzParseRecords(f *testing.F) {
	src := fixed{}
	src.put(ClusterType, "a", "1")
	f.Add(AppendRecord(nil, ClusterType, []*Resource{src[ClusterType]["a"]}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseRecords(b)
		if err != nil {
			return
		}
		for _, r := range list {
			if r.Name == "" {
				t.Error("a resource without a name was taken")
			}
			_, _ = r.Body() // must not panic
		}
	})
}
