package policy

import "testing"

func TestIDsOfAnyFormNameServices(t *testing.T) {
	for _, c := range []struct{ template, path, want string }{
		{"/ns/{namespace}/sa/{service}", "/ns/shop/sa/cart", "shop/cart"},
		{"/k8s/{namespace}/{service}", "/k8s/shop/cart", "shop/cart"},
		{"/{service}", "/cart", "default/cart"},
		{"/{service}/in/{namespace}", "/cart/in/shop", "shop/cart"},
		{"/k8s/{namespace}/{service}", "/ns/weir-system/sa/control", "weir-system/control"},
		// What is of another form, or claims to be the control plane, is nobody.
		{"/k8s/{namespace}/{service}", "/ns/shop/sa/cart", ""},
		{"/k8s/{namespace}/{service}", "/k8s/weir-system/control", ""},
		{"/k8s/{namespace}/{service}", "/k8s/shop", ""},
		{"/k8s/{namespace}/{service}", "/k8s/shop/cart/x", ""},
		{"/k8s/{namespace}/{service}", "/k8s/shop/Cart", ""},
		{"/k8s/{namespace}/{service}", "/k8s//cart", ""},
		{"/{service}", "", ""},
	} {
		template, err := ParseIDTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		got, err := template.Parse(c.path)
		if c.want == "" && err == nil || c.want != "" && got.String() != c.want {
			t.Errorf("%s by %s is %v, %v; want %q", c.path, c.template, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "/", "{service}", "/{service}/", "/a", "/{service}/{service}", "/x{service}", "/{a}/{service}", "//{service}"} {
		if _, err := ParseIDTemplate(bad); err == nil {
			t.Errorf("the template %q is taken", bad)
		}
	}
}
