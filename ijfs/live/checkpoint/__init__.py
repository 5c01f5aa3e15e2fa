"""One save's freeze and one restore: the steps themselves, without the keeper around them."""
