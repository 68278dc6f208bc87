package shift

import "testing"

// What is written down reads back, and what is no window is refused.
func TestParseWindow(t *testing.T) {
	for text, want := range map[string]string{
		"09:00-17:00":         "09:00-17:00",
		"Mon-Wed 09:00-17:00": "Mon Tue Wed 09:00-17:00",
		"sat sun 22:00-06:00": "Sat Sun 22:00-06:00",
		"Fri-Mon 00:00-24:00": "Fri Sat Sun Mon 00:00-24:00",
	} {
		w, err := ParseWindow(text)
		if err != nil || w.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, w, err, want)
		}
	}
	for _, text := range []string{"", "Mon", "Mon 9:00-17:00", "Mon 09:00", "Mun 09:00-10:00", "24:00-24:00", "09:60-10:00", "25:00-26:00", "Mon-Foo 01:00-02:00", "Mon Tue Wed Thu Fri Sat Sun Mon Tue 01:00-02:00"} {
		if w, err := ParseWindow(text); err == nil {
			t.Errorf("%q is taken for %q", text, w)
		}
	}
}
