"""Planted mistakes in the solutions of ex02_gradient_reversal: step -> (old text, new text, first line of the
check's message, a regular expression)."""

BUGS = {
    "slopes": [
        ("eta + c * theta, theta - c * eta", "theta - c * eta, eta + c * theta", "wrong order"),
        ("theta - c * eta", "c * eta - theta", "second slope has the wrong sign"),
        ("theta - c * eta", "theta + c * eta", "lost a minus"),
        ("eta + c * theta, theta - c", "eta + c / 2 * theta, theta - c / 2", "the 1/2 is still there"),
        ("eta + c * theta, theta - c * eta", "c * theta, -c * eta", r"product theta\*eta is missing"),
        ("return eta", "eta", "`return` missing"),
    ],
    "simultaneous_step": [
        ("eta + lr * up", "eta - lr * up", "both players walk downhill"),
        ("theta - lr * down", "theta + lr * down", "both players climb"),
        (
            "    return theta - lr * down, eta + lr * up",
            "    theta = theta - lr * down\n    return theta, eta + lr * slopes(theta, eta, c)[1]",
            "saw the model's new place",
        ),
        ("theta - lr * down, eta + lr * up", "theta - down, eta + up", "learning rate is not used"),
        ("theta - lr * down, eta + lr * up", "theta + lr * down, eta - lr * up", "players go the wrong way"),
    ],
    "Reversal": [
        ("-ctx.scale * grad", "ctx.scale * grad", "right size but the wrong sign: did you negate"),
        ("-ctx.scale * grad", "-grad", "negated but not scaled"),
        ("-ctx.scale * grad", "grad", "passes unchanged"),
        ("return x.view_as(x)", "return -scale * x", "forward changed the numbers"),
        ("return x.view_as(x)", "return -x", "forward changed the sign"),
        ("-ctx.scale * grad, None", "-ctx.scale * torch.ones_like(grad), None", "gradient is not used"),
        ("-ctx.scale * grad, None", "-ctx.scale, None", "gradient is not used: multiply"),
        ("-ctx.scale * grad, None", "-ctx.scale * grad", "must return two values"),
        ("-ctx.scale * grad, None", "None, -ctx.scale * grad", "None for scale"),
        ("return -ctx.scale * grad", "grad *= -ctx.scale; return grad", "arriving gradient in place"),
        ("(torch.autograd.Function)", "(torch.nn.Module)", "must be a class that inherits"),
    ],
    "reverse_by_detach": [
        ("(1 + scale) * x.detach() - scale * x", "-scale * x", "add what is missing"),
        ("scale) * x.detach() - scale * x", "scale) * x - scale * x.detach()", "wrong part is detached"),
        ("(1 + scale) * x.detach()", "x.detach()", "gradient right, value not: what must"),
        ("(1 + scale) * x.detach()", "-(1 + scale) * x.detach()", "right size but the wrong sign"),
        ("(1 + scale) * x.detach()", "scale * x.detach()", "the two parts cancel"),
        ("(1 + scale) * x.detach()", "x + scale * x.detach()", "x is still attached"),
        ("(1 + scale) * x.detach() - scale * x", "x", "passes unchanged"),
        ("- scale * x", "+ scale * x", "gradient has the wrong sign"),
        ("(1 + scale) * x.detach() - scale * x", "x.detach()", "has no gradient"),
        ("(1 + scale) * x.detach() - scale * x", "2 * x.detach() - x", "negated but not scaled"),
    ],
    "players_loss": [
        ("f(theta, reverse_gradient(eta, scale))", "f(theta, eta)", "nobody is reversed"),
        ("f(theta, reverse_gradient(eta, scale))", "f(reverse_gradient(theta, scale), eta)", "wrong player"),
        ("f(theta, reverse_gradient(eta, scale))", "reverse_gradient(f(theta, eta), scale)", "both players"),
        ("reverse_gradient(eta, scale)", "reverse_gradient(eta)", "scale does not reach the layer"),
        ("f(theta, reverse_gradient(eta, scale))", "-f(theta, eta)", "the loss itself is negated"),
        ("reverse_gradient(eta, scale)", "eta.detach()", "gets no gradient"),
    ],
    "largest_rate": [
        ("2 * c / (1 + c**2)", "2 / c", "the rotation is missing"),
        ("2 * c / (1 + c**2)", "2 * c", "has a third term"),
        ("2 * c", "c", "closes in fastest"),
        ("2 * c / (1 + c**2)", "(1 + c**2) / (2 * c)", "upside down"),
        ("c**2", "c", "c is squared, too"),
        ("2 * c / (1 + c**2)", "2 / (c + 1 / c)", "stopped with ZeroDivisionError"),
    ],
    "play": [
        ("players_loss(game, theta, eta, scale)", "game(theta, eta)", "reversal is forgotten"),
        ("theta, eta, scale)", "theta, eta)", "`scale` is not used"),
        ("dtype=torch.float64, ", "", "only float32 digits"),
        (
            "        optimizer.step()\n",
            "        theta.data -= lr * theta.grad\n"
            "        optimizer.zero_grad()\n"
            "        players_loss(game, theta, eta, scale).backward()\n"
            "        eta.data -= lr * eta.grad\n",
            "adversary saw the model's new place",
        ),
        ("        optimizer.zero_grad()\n", "", "pile up"),
        ("walk = [(theta.item(), eta.item())]", "walk = []", "the start is missing"),
        ("return np.array(walk)", "return walk", "must be a NumPy array"),
        ("return np.array(walk)", "return np.array(walk)[:-1]", "last place is missing"),
    ],
}
