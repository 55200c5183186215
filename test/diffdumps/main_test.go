package main

import "testing"

// TestOursIsIstiodsButForWhatIsExplained compares every recorded scenario.
func TestOursIsIstiodsButForWhatIsExplained(t *testing.T) {
	dir := find()
	if dir == "" {
		t.Skip("no recordings of istiod: no shared/waypoint-dumps in a folder above")
	}
	names, err := recordedScenarios(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		r, err := compareScenario(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range r.open {
			t.Errorf("%s: %s", name, d)
		}
		if r.equal == 0 {
			t.Errorf("%s: no resource is equal", name)
		}
	}
}

func TestDifferencesAreFound(t *testing.T) {
	a := map[string]any{"name": "x", "endpoints": []any{map[string]any{"locality": "1"}, map[string]any{"locality": "2"}}, "list": []any{"a", "b"}}
	b := map[string]any{"name": "y", "endpoints": []any{map[string]any{"locality": "2"}, map[string]any{"locality": "1"}}, "list": []any{"b", "a"}}
	var found []difference
	diff(&found, difference{}, "", a, b)
	if len(found) != 3 {
		t.Errorf("got %v, want the name and two elements of the ordered list", found)
	}
}
