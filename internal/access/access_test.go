package access

import (
	"strings"
	"testing"
)

func TestDecide(t *testing.T) {
	type table struct {
		who  Principal
		want string // the kinds allowed: for "web", then for "web" and "catalog", then for no service
	}
	kinds := []struct {
		letter string
		kind   Kind
	}{{"p", Public}, {"k", Known}, {"r", Read}, {"g", Register}, {"w", Write}, {"o", Operate}, {"a", Audit}}
	of := [][]string{{"web"}, {"web", "catalog"}, nil}
	for name, c := range map[string]table{
		"anonymous":           {Principal{}, "p p p"},
		"reader":              {Principal{Role: Reader}, "pkr pkr pkr"},
		"auditor":             {Principal{Role: Auditor}, "pkra pkra pkra"},
		"operator":            {Principal{Role: Operator}, "pkrgwoa pkrgwoa pkrgwoa"},
		"owner of web":        {Principal{Role: Owner, Services: []string{"web"}}, "pkrgw pkr pkr"},
		"owner of both":       {Principal{Role: Owner, Services: []string{"web", "catalog"}}, "pkrgw pkrgw pkr"},
		"owner of another":    {Principal{Role: Owner, Services: []string{"payments"}}, "pkr pkr pkr"},
		"owner of none":       {Principal{Role: Owner}, "pkr pkr pkr"},
		"instance of web":     {Principal{Role: Service, Services: []string{"web"}}, "pkrg pk pk"},
		"instance of catalog": {Principal{Role: Service, Services: []string{"catalog"}}, "pk pk pk"},
		"join token of web":   {Principal{Role: Join, Services: []string{"web"}}, "pkrg pk pk"},
		"unheard-of role":     {Principal{Role: "root", Services: []string{"web"}}, "p p p"},
		"role in capitals":    {Principal{Role: "Operator"}, "p p p"},
	} {
		var got []string
		for _, services := range of {
			letters := ""
			for _, k := range kinds {
				if Decide(c.who, Need{Kind: k.kind, Services: services}) == nil {
					letters += k.letter
				}
			}
			got = append(got, letters)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s may %q, want %q", name, s, c.want)
		}
	}
	if err := Decide(Principal{Role: Operator}, Need{Kind: 99}); err != nil {
		t.Errorf("operator: %v", err)
	}
	if Decide(Principal{Role: Reader}, Need{Kind: 99}) == nil {
		t.Error("a kind nobody knows is allowed")
	}
}

func TestRefusalNamesWhoAndWhat(t *testing.T) {
	err := Decide(Principal{Role: Owner, Accessor: "a1", Services: []string{"web"}}, Need{Kind: Write, Services: []string{"catalog"}})
	if want := `Permission denied: owner of web (token a1) lacks the right to write service "catalog"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
